"""The run protocol as an explicit-state model, and its checker."""
