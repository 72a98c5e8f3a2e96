"""Health, status and the local control socket."""
