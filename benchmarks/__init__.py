"""Benchmarks: real servers, real processes, medians; never part of the tests.

`python -m benchmarks` runs the workloads W1 to W8, and with `--peers` other systems on the same ones in the same session.
What a peer's script needs (`drive`, `measure`, `accounting`, `processes`, `sizes`) is standard library only, so that it runs
in that peer's own virtualenv.
"""
