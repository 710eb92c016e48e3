"""Benchmarks: this project and other packages on the same work, in one process."""
