"""Calibri: calibrate Diffusion Transformers.

Public names are imported on first use, so that ``import calibri`` and ``calibri --help`` do not
wait for torch. What there is stands in ``__init__.pyi``, here and in every package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
