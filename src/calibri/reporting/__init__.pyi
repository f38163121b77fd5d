from .metrics import METRICS as METRICS
from .page import report as report
