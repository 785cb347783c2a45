"""The control plane's gRPC services for clients, and what stands before every service: errors, tokens, deadlines."""
