"""Benchmarks: real servers, real processes, medians; never part of the tests."""
