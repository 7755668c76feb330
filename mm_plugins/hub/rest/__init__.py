"""The REST API of the registry, below ``/mm/v1``."""
