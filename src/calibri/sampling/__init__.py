"""(prompt, seed) to images, with scales on the model: hooks that come off, or folded weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
