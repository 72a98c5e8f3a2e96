"""The registry in one JSON file."""
