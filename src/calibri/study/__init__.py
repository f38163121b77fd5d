"""Which of two images people prefer: blind pairs, their votes, what the votes say."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
