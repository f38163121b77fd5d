"""Scale the sites of transformers: the only package that touches hooks or weights.

Multiplying a branch output by s equals multiplying its gate by s (spec section 1). A forward hook
does it while coefficients change; fusing folds s into the weights of the branch's last linear when
they are final.
"""

from calibri.scaling.embedded import check_embedded_guidance
from calibri.scaling.fold import Fused
from calibri.scaling.hooks import Layout, LayoutResolver, knows_timesteps
from calibri.scaling.scaler import Scaler

__all__ = [
    "Fused",
    "Layout",
    "LayoutResolver",
    "Scaler",
    "check_embedded_guidance",
    "knows_timesteps",
]
