"""The protocols, simulated: machine, store, replicas and worker cores in one process, under a seeded scheduler of faults."""
