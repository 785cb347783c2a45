"""The worker's protocol core: claims, credits, rights and feeding, and no I/O."""
