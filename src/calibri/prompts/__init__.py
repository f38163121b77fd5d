"""Texts to sample from: files, known and generated sets, the buckets of a search."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
