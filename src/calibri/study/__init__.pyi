from .creation import create as create
from .outcome import StudyResults as StudyResults
from .outcome import percent as percent
from .reporter import report as report
from .server import serve as serve
