"""The benchmark: ours and others side by side, in one process, on the same work."""
