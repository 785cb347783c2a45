"""Events outside the machine: which workflows they start, by name and condition."""
