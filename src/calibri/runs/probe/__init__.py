"""A small share of a run's images decides how the rest is spent."""
