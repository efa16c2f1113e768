"""The kernel's side of the program: its handshake, its request loop, its table of mounts."""
