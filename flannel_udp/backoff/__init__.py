"""Trying again what failed: how long to wait (`delay`), and which failures are worth a line of log (`said_once`)."""
