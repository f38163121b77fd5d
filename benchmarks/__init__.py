"""Benchmarks and experiments: each prints one table and says how it was made."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("calibri") is None:  # not installed: a bare checkout
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
