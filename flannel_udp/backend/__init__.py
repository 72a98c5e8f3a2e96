"""How packets travel between hosts: what the types of flannel's backends have in common."""
