"""The control plane: the pure machine, and the store, broker and gRPC shells around it."""
