"""The paper's experiments on any pipeline: conditions to figures with intervals, and a page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
