"""Jobs: what the commands do, in run folders."""
