"""What the installed diffusers calls the type in which it loads weights."""

import diffusers
from packaging.version import Version

# The present name; diffusers before 0.40 passes it by in silence.
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40.0.dev0") else "torch_dtype"
