"""From one process to the next without a packet lost."""
