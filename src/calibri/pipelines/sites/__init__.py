"""Which module outputs of a transformer are branches of its residual stream."""
