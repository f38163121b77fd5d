"""The small world that is shipped: captions, scenes, renderer, the trained files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
