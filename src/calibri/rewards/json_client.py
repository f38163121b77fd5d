"""JSON to and from one server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from calibri.errors import RewardError
from calibri.http_client import (
    HttpClient,
    PassingFaultError,
    Pauses,
    RefusedError,
    ReplyTooLargeError,
    insist,
    is_loopback,
)

_LONGEST_WAIT = 20.0
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class JsonClient:
    """Sends JSON and reads JSON.

    Args:
        base_url: ``http://`` or ``https://``, host and path before the one of each call.
        key: sent as a bearer token; never over plain HTTP to another machine.
        timeout: seconds for one attempt, connection and whole reply together.
        attempts: tries of one call before it fails; only faults that may pass are tried again.
        first_wait: seconds before the second try; doubles with each, less a random part of half.
        sleep: waits.

    Raises:
        RewardError: the address or the number of attempts cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        *,
        key: str = "",
        timeout: float = 120.0,
        attempts: int = 4,
        first_wait: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if attempts < 1:
            raise RewardError(f"attempts is {attempts}; it must be at least 1.")
        self.base_url = _checked_address(base_url, key).rstrip("/")
        self._client = HttpClient(token=key, timeout=timeout)
        self._attempts = attempts
        self._pauses = Pauses(first_wait, _LONGEST_WAIT)
        self._sleep = sleep

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """GET ``path``, or POST ``body`` to it, and return the decoded reply.

        Raises:
            RewardError: all tries failed, the server refused the request, or its reply is no JSON.
        """
        url = f"{self.base_url}/{path}"
        try:
            return _decoded(url, self._reply(url, body))
        except PassingFaultError as error:
            raise RewardError(
                f"'{url}' failed {self._attempts} times, at last with: {error}. Check that the "
                "server runs and answers, then try again."
            ) from error
        except RefusedError as error:
            raise RewardError(
                f"'{url}' refused the request with {error}. Check the address, the model's name "
                "and the key."
            ) from error
        except ReplyTooLargeError as error:
            raise RewardError(f"The reply of '{url}' has {error}. Check the server.") from error

    def _reply(self, url: str, body: Mapping[str, Any] | None) -> bytes:
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        return insist(
            lambda: self._client.send(method, url, data, _HEADERS),
            self._attempts,
            self._pauses,
            self._sleep,
        )


def _checked_address(base_url: str, key: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise RewardError(
            f"'{parts.scheme}://{parts.hostname or ''}' is not an address that can be used. Write "
            "http://HOST:PORT/v1 or https://HOST/v1, without a user name."
        )
    if key and parts.scheme == "http" and not is_loopback(base_url):
        raise RewardError(
            f"The key for '{parts.hostname}' would cross the network readable for everyone. Use "
            "https."
        )
    return base_url


def _decoded(url: str, reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise RewardError(
            f"'{url}' did not answer with JSON but with {reply[:80]!r}. Check the address."
        ) from error
