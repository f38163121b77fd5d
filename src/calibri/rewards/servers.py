"""Requests to one of several servers, sent again when the fault may pass."""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from calibri.errors import RewardError
from calibri.rewards.retrying import Pauses, asked_pause, may_pass

MAX_REPLY_BYTES = 16 * 2**20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds
_PER_SERVER = 2  # requests at a time: one is scored while the next one travels
_GET_ATTEMPTS = 3  # what is asked before the work starts should fail soon

Parts = Mapping[str, tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    """A JSON object, and the server that gave it."""

    url: str
    data: Mapping[str, Any]


class _Fault(Exception):  # noqa: N818 - it never leaves this module
    """Something that may pass."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


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
        self.urls = tuple(url.rstrip("/") for url in urls)
        for url in self.urls:
            _check_url(url)
        self.parallel = _PER_SERVER * len(self.urls)
        self._token, self._timeout, self._attempts = token, timeout, attempts
        self._lock = threading.Lock()
        self._turn = 0
        self._faults = dict.fromkeys(self.urls, 0)
        self._rests_until = dict.fromkeys(self.urls, 0.0)
        self._pauses = Pauses(_FIRST_PAUSE, _LONGEST_PAUSE)

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
            url = self._choose(urls, until)
            if url is None:
                break
            try:
                data = self._once(url, method, path, headers, body, until)
                if not check(data):
                    raise _Fault("the answer is not whole")
            except _Fault as fault:
                last = f"{url}: {fault}"
                self._failed(url, fault.pause)
            else:
                self._faults[url] = 0
                return Answer(url, data)
        raise RewardError(
            f"No reward server answered {method} {path} ({last}). Everything scored before is "
            "kept: start the server again and resume the run."
        )

    def _choose(self, urls: Sequence[str], until: float) -> str | None:
        """Wait for the server that is ready first; None when that is after the deadline."""
        with self._lock:
            self._turn += 1
            order = [urls[(self._turn + i) % len(urls)] for i in range(len(urls))]
            url = min(order, key=lambda u: max(self._rests_until[u], time.monotonic()))
            ready = self._rests_until[url]
        if max(ready, time.monotonic()) >= until:
            return None
        time.sleep(max(0.0, ready - time.monotonic()))
        return url

    def _failed(self, url: str, pause: float) -> None:
        with self._lock:
            if time.monotonic() < self._rests_until[url]:
                return  # another request met the same fault
            self._faults[url] += 1
            rest = self._pauses.after(self._faults[url], asked=pause)
            self._rests_until[url] = time.monotonic() + rest

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
        token = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        try:
            with _connection(url, seconds) as connection:
                connection.request(method, path, body or None, {**headers, **token})
                with connection.getresponse() as response:
                    content = response.read(MAX_REPLY_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise _Fault(f"{type(error).__name__} {error}".strip()) from None
        return _read(url, response, content)


@contextlib.contextmanager
def _connection(url: str, seconds: float) -> Iterator[http.client.HTTPConnection]:
    """Connect, and cut the connection after ``seconds`` however slowly bytes still come."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=seconds)
    connection.connect()
    clock = threading.Timer(seconds, _cut, [connection.sock])
    clock.daemon = True
    clock.start()
    try:
        yield connection
    finally:
        clock.cancel()
        connection.close()


def _cut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _read(url: str, response: http.client.HTTPResponse, content: bytes) -> Mapping[str, Any]:
    if may_pass(response.status):
        reason = f"status {response.status} {_reason(content)}"
        raise _Fault(reason, asked_pause(response.headers.get("Retry-After")))
    if response.status != 200:
        raise RewardError(
            f"{url} refused with status {response.status}: {_reason(content)}. The same request "
            "would be refused again; correct it and resume."
        )
    if len(content) > MAX_REPLY_BYTES:
        raise RewardError(f"{url} answered with more than {MAX_REPLY_BYTES} bytes.")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise _Fault("the answer is not JSON") from None
    if not isinstance(data, dict):
        raise _Fault("the answer is no JSON object")
    return data


def _reason(content: bytes) -> str:
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        return str(json.loads(content).get("error", ""))[:500]
    return content[:200].decode("utf-8", "replace")


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and not parts.path.strip("/")
        good = good and parts.port != 0
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
