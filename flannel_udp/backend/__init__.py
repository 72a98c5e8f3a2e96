"""How packets travel: one module or folder a backend, imported when a configuration names its type."""
