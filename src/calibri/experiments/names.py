"""Short names of what an experiment keeps."""

from __future__ import annotations

import hashlib
import re


def slug(name: str) -> str:
    """A name as part of that of a file: at most 60 small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[-60:]


def digest(text: str) -> str:
    """Eight hexadecimal digits that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
