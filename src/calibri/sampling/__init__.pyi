from .branches import BranchResolver as BranchResolver
from .sampler import Noise as Noise
from .sampler import Sampler as Sampler
from .scales.fold import Fused as Fused
from .scales.layout import Layout as Layout
from .scales.scaler import Scaler as Scaler
from .shift import change_shift as change_shift
from .signatures import call_arguments as call_arguments
