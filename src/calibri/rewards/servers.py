"""Requests to one of several servers, sent again when the fault may pass."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from calibri.errors import RewardError
from calibri.http_client import (
    HttpClient,
    PassingFaultError,
    Pauses,
    RefusedError,
    ReplyTooLargeError,
)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_PER_SERVER = 2  # requests at a time: one is scored while the next one travels
_GET_ATTEMPTS = 3  # what is asked before the work starts should fail soon

Parts = Mapping[str, tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    """A JSON object, and the server that gave it."""

    url: str
    data: Mapping[str, Any]


class Rests:
    """How long each server is left alone: longer after every failure in a row; threads share it.

    Args:
        urls: of the servers.
        clock: seconds, as of ``time.monotonic``.
    """

    def __init__(self, urls: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = 0
        self._faults = dict.fromkeys(urls, 0)
        self._until = dict.fromkeys(urls, 0.0)
        self._pauses = Pauses(_FIRST_PAUSE, _LONGEST_PAUSE)

    def next_of(self, urls: Sequence[str]) -> tuple[str, float]:
        """Take turns among the servers that are ready first; a url, and when it is ready."""
        with self._lock:
            self._turn += 1
            order = [urls[(self._turn + i) % len(urls)] for i in range(len(urls))]
            url = min(order, key=lambda u: max(self._until[u], self._clock()))
            return url, self._until[url]

    def failed(self, url: str, asked: float = 0.0) -> None:
        """Leave a server alone for a while, of ``asked`` seconds or more."""
        with self._lock:
            if self._clock() < self._until[url]:
                return  # another request met the same fault
            self._faults[url] += 1
            self._until[url] = self._clock() + self._pauses.after(self._faults[url], asked)

    def answered(self, url: str) -> None:
        """Forget the failures of a server."""
        self._faults[url] = 0


class Servers:
    """Servers that give the same answers.

    A server that failed is left alone for a while that doubles with every failure in a row.

    Args:
        urls: ``http://host:port`` or ``https://host``.
        token: sent as a bearer token when not empty.
        timeout: seconds for one request.
        attempts: times that a form is sent at most.

    Raises:
        RewardError: there is no url, or one of them is no url of a server.
    """

    def __init__(self, urls: Sequence[str], token: str, *, timeout: float, attempts: int) -> None:
        if not urls:
            raise RewardError("Give at least one url of a reward server.")
        for url in urls:
            _check_url(url)
        _check_token(token)
        self.urls = tuple(url.rstrip("/") for url in urls)
        self.parallel = _PER_SERVER * len(self.urls)
        # These are servers of one's own network: reached directly.
        self._client = HttpClient(token=token, proxies=False)
        self._timeout, self._attempts = timeout, attempts
        self._rests = Rests(self.urls)

    def get(self, url: str, path: str, until: float) -> Answer:
        """Get a JSON object from one of the servers.

        Raises:
            RewardError: it refused, or did not answer in time.
        """
        return self._insist((url,), "GET", path, {}, b"", until, lambda data: True, _GET_ATTEMPTS)

    def post(
        self, path: str, parts: Parts, until: float, check: Callable[[Mapping[str, Any]], bool]
    ) -> Answer:
        """Post a form to any server.

        Args:
            path: on the server.
            parts: name to content type and content.
            until: when to give up, of ``time.monotonic``.
            check: whether an answer is whole; if not, it counts as a fault of the server.

        Raises:
            RewardError: a server refused, or none answered in time.
        """
        boundary = secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        body = _multipart(parts, boundary)
        return self._insist(self.urls, "POST", path, headers, body, until, check, self._attempts)

    def _insist(
        self,
        urls: Sequence[str],
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float,
        check: Callable[[Mapping[str, Any]], bool],
        attempts: int,
    ) -> Answer:
        last = "the deadline was over before"
        for _ in range(attempts):
            url, ready = self._rests.next_of(urls)
            if max(ready, time.monotonic()) >= until:
                break
            time.sleep(max(0.0, ready - time.monotonic()))
            try:
                data = self._once(url, method, path, headers, body, until)
                if not check(data):
                    raise PassingFaultError("the answer is not whole")
            except PassingFaultError as fault:
                last = f"{url}: {fault}"
                self._rests.failed(url, fault.pause)
            else:
                self._rests.answered(url)
                return Answer(url, data)
        raise RewardError(
            f"No reward server answered {method} {path} ({last}). Everything scored before is "
            "kept: start the server again and resume the run."
        )

    def _once(
        self,
        url: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        until: float,
    ) -> Mapping[str, Any]:
        seconds = min(self._timeout, max(0.05, until - time.monotonic()))
        try:
            reply = self._client.send(method, url + path, body or None, headers, seconds)
        except RefusedError as error:
            raise RewardError(
                f"{url} refused with {error}. The same request would be refused again; correct it "
                "and resume."
            ) from error
        except ReplyTooLargeError as error:
            raise RewardError(f"{url} answered with {error}.") from error
        return _decoded(reply)


def _decoded(reply: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(reply)
    except (ValueError, RecursionError):
        raise PassingFaultError("the answer is not JSON") from None
    if not isinstance(data, dict):
        raise PassingFaultError("the answer is no JSON object")
    return data


def _check_token(token: str) -> None:
    # It travels in a header, which holds nothing else (RFC 6750, section 2.1).
    if not all("!" <= character <= "~" for character in token):
        raise RewardError(
            "The token of the reward server holds a space, a line break or a character that is no "
            "ASCII. Copy it again, without what stands around it."
        )


def _check_url(url: object) -> None:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.path.strip("/")
        good = good and parts.port != 0 and all(str(parts.hostname).rstrip(".").split("."))
    except ValueError:
        good = False
    if not good:
        raise RewardError(
            f"'{url}' is no url of a reward server. Write for example http://127.0.0.1:8765."
        )


def _multipart(parts: Parts, boundary: str) -> bytes:
    lines = []
    for name, (kind, content) in parts.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n'
        lines += [f"{head}Content-Type: {kind}\r\n\r\n".encode(), content, b"\r\n"]
    return b"".join([*lines, f"--{boundary}--\r\n".encode()])
