"""Invitations: a number and a secret; the study keeps only a digest of the secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from calibri.study.votes import Votes

_TOKEN = re.compile(r"([1-9][0-9]{0,8})-([A-Za-z0-9_-]{32})", re.ASCII)


def invite(count: int) -> dict[int, str]:
    """Draw tokens, by their numbers from 1; 192 bits of each cannot be guessed."""
    return {n: f"{n}-{secrets.token_urlsafe(24)}" for n in range(1, count + 1)}


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).digest()


def participant(token: str, votes: Votes) -> int | None:
    """The number of an invitation; None where the token is none, or was tampered with.

    The comparison takes the same time wherever the first difference is.
    """
    found = _TOKEN.fullmatch(token)
    if found is None:
        return None
    number = int(found[1])
    kept = votes.digest(number)
    same = hmac.compare_digest(digest(token), kept or bytes(32))
    return number if same and kept is not None else None
