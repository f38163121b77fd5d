"""Find the sites of an unknown transformer by measurement."""
