"""Start, await, list and steer runs over gRPC."""
