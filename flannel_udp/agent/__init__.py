"""The agent put together: one run of it, one lease after another, and what it says of itself."""
