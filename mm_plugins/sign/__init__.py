"""Built-in forms of signatures over models."""
