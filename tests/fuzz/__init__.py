"""Coverage-guided fuzzing of the packet path: `run.py` is the way in."""
