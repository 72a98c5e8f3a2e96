"""The network configuration that all hosts share: read, check, fill in the defaults."""
