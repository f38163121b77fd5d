from .registry import EXPERIMENTS as EXPERIMENTS
from .registry import check_experiment as check_experiment
