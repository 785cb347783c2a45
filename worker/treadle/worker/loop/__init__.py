"""The durable event loop: workflow code over its history."""
