"""The pure machine: every rule about runs, and no I/O."""
