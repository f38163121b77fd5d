"""Trackers of experiments that a run can log to, each a callback in a file of its own."""
