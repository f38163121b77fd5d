"""A finished calibration: folder, hub, card, its effect on a pipeline, other formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
