"""The built-in plugins of Model Manager, registered through entry points like anybody's."""
