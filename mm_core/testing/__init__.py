"""Test suites and servers for the authors of plugins. Needs pytest."""
