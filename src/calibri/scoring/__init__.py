"""Candidates and (prompt, seed) pairs to scores, unit by unit, here or elsewhere."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
