"""Where runs are kept: the store port, its Redis adapter and its in-memory twin."""
