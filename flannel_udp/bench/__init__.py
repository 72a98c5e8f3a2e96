"""Benches: what is forwarded is measured, kept, read, judged, compared and shown."""
