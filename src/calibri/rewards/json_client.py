"""JSON over HTTP with the standard library: deadlines, a limit on replies, bounded retries."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse, IncompleteRead
from itertools import count
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from calibri.errors import RewardError
from calibri.rewards.retrying import Pauses, asked_pause, may_pass

_LONGEST_WAIT = 20.0
_LARGEST_REPLY = 1 << 24
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class _NoRedirects(HTTPRedirectHandler):
    # A redirect would send images, prompts and the key to a server that nobody named.
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _TryAgainError(Exception):
    """A fault that may pass: no connection, a broken reply, too many requests, a server error."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


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
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout, self._attempts = timeout, attempts
        self._pauses = Pauses(first_wait, _LONGEST_WAIT)
        self._sleep = sleep
        loopback = urlsplit(base_url).hostname in _LOOPBACK
        self._opener = build_opener(_NoRedirects, *([ProxyHandler({})] if loopback else []))

    def call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """GET ``path``, or POST ``body`` to it, and return the decoded reply.

        Raises:
            RewardError: all tries failed, the server refused the request, or its reply is no JSON.
        """
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.base_url}/{path}"
        for attempt in count(1):
            try:
                return _decoded(url, self._once(Request(url, data, self._headers)))
            except _TryAgainError as error:
                if attempt == self._attempts:
                    raise RewardError(
                        f"'{url}' failed {attempt} times, at last with: {error}. Check that the "
                        "server runs and answers, then try again."
                    ) from error
                self._sleep(self._pauses.after(attempt, error.wait))

    def _once(self, request: Request) -> bytes:
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return _read(response, deadline)
        except HTTPError as error:
            with error:
                raise _refusal(request.full_url, error) from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _TryAgainError(f"{type(error).__name__}: {error}") from error


def _checked_address(base_url: str, key: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise RewardError(
            f"'{parts.scheme}://{parts.hostname or ''}' is not an address that can be used. Write "
            "http://HOST:PORT/v1 or https://HOST/v1, without a user name."
        )
    if key and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise RewardError(
            f"The key for '{parts.hostname}' would cross the network readable for everyone. Use "
            "https."
        )
    return base_url


def _read(response: HTTPResponse, deadline: float) -> bytes:
    """Read a whole reply; the socket's own timeout starts anew with every byte."""
    reply = bytearray()
    while part := response.read1(65536):
        reply += part
        if time.monotonic() > deadline:
            raise TimeoutError("the reply took too long")
        if len(reply) > _LARGEST_REPLY:
            raise RewardError(f"The reply has more than {_LARGEST_REPLY} bytes. Check the server.")
    if response.length:
        raise IncompleteRead(bytes(reply), response.length)
    return bytes(reply)


def _refusal(url: str, error: HTTPError) -> Exception:
    said = error.read(300).decode(errors="replace")
    if may_pass(error.code):
        return _TryAgainError(
            f"status {error.code}: {said!r}", asked_pause(error.headers.get("Retry-After"))
        )
    return RewardError(
        f"'{url}' refused the request with status {error.code}: {said!r}. Check the address, the "
        "model's name and the key."
    )


def _decoded(url: str, reply: bytes) -> Any:
    try:
        return json.loads(reply)
    except ValueError as error:
        raise RewardError(
            f"'{url}' did not answer with JSON but with {reply[:80]!r}. Check the address."
        ) from error
