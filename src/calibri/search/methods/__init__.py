"""One file for each search method; each has its registration as `INFO`."""
