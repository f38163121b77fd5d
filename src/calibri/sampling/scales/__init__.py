"""Scale the sites of transformers: the only package that touches hooks or weights.

Multiplying a branch output by s equals multiplying its gate by s (spec section 1). A forward hook
does it while coefficients change; fusing folds s into the weights of the branch's last linear when
they are final.
"""

from calibri.pipelines import check_embedded_guidance, knows_timesteps
from calibri.sampling.scales.fold import Fused
from calibri.sampling.scales.hooks import Layout, LayoutResolver
from calibri.sampling.scales.scaler import Scaler

__all__ = [
    "Fused",
    "Layout",
    "LayoutResolver",
    "Scaler",
    "check_embedded_guidance",
    "knows_timesteps",
]
