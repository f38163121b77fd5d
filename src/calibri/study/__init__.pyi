from .creation import create as create
from .server import serve as serve
