"""What a pipeline is made of: transformers, families, sites, geometry; how to load it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
