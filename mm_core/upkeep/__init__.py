"""Upkeep of a registry: check, repair, backup, restore, export, and import of a JSON file.

Everything here works on a `Sink`, below `ModelRegistry`, since that refuses a log
that is damaged.
"""
