"""HTTP for everyone: deadlines, a limit on replies, retries, and no secret for another host.

Redirects are followed only without a token, and a password in ``~/.netrc`` is never sent. Proxies
are those of the environment, except for this machine. Certificates are checked with those of
certifi, or of ``REQUESTS_CA_BUNDLE`` or ``SSL_CERT_FILE``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

from calibri.version import __version__

MAX_REPLY_BYTES = 16 * 2**20

# Too slow, too many requests, faults of the server or of a proxy: the same request may succeed.
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_MOST_DOUBLINGS = 32  # of a pause, long after it reached its limit
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PART_BYTES = 2**16
_CONNECT_SECONDS = 20.0  # of a timeout at most
_CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class PassingFaultError(Exception):
    """A fault that may pass: no connection, a broken reply, too many requests, a server error.

    Attributes:
        pause: seconds that the server asked to wait.
    """

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause


class RefusedError(Exception):
    """A server answered, and would answer the same again.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, content: bytes) -> None:
        super().__init__(f"status {status}: {excerpt(content)}")
        self.status = status


class ReplyTooLargeError(Exception):
    """A reply has more bytes than are read."""


class HttpClient:
    """Sends requests, each over a connection of its own; threads may share it.

    Args:
        token: sent as a bearer token when not empty; no redirect is followed then.
        timeout: seconds from the start to the end of a reply; a server that is silent is left after
            as many again at most.
        max_bytes: of a reply.
        proxies: whether the proxies of the environment are used, never for this machine.
        redirects: whether redirects are followed when there is no token.
    """

    def __init__(
        self,
        *,
        token: str = "",
        timeout: float = 120.0,
        max_bytes: int = MAX_REPLY_BYTES,
        proxies: bool = True,
        redirects: bool = False,
    ) -> None:
        self._authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout, self._max_bytes = timeout, max_bytes
        self._proxies = proxies
        self._redirects = redirects and not token

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Send one request and read its reply.

        Args:
            method: ``"GET"`` or ``"POST"``.
            url: where to.
            body: what is sent.
            headers: beside those of every request.
            timeout: seconds, instead of those of the client.

        Raises:
            PassingFaultError: the same request may succeed later.
            RefusedError: it would not.
            ReplyTooLargeError: the reply has more than ``max_bytes``.
        """
        seconds = self._timeout if timeout is None else timeout
        until = time.monotonic() + seconds
        try:
            with requests.Session() as session:
                session.trust_env = False  # or a password of ~/.netrc would replace the token
                with session.request(
                    method,
                    url,
                    data=body,
                    headers={**_headers(), **(headers or {}), **self._authorization},
                    timeout=(min(seconds, _CONNECT_SECONDS), seconds),
                    allow_redirects=self._redirects,
                    proxies=self._proxies_for(url),
                    verify=_certificates(),
                    stream=True,
                ) as response:
                    return self._read(response, until)
        except (OSError, HTTPError) as error:  # those of requests are OSErrors
            raise PassingFaultError(_in_words(error)) from error

    def _proxies_for(self, url: str) -> dict[str, str]:
        return get_environ_proxies(url) if self._proxies and not is_loopback(url) else {}

    def _read(self, response: requests.Response, until: float) -> bytes:
        content = bytearray()
        # The timeout of the socket starts anew with every byte, so a read must not wait for many.
        while part := response.raw.read1(_PART_BYTES):
            content += part
            if time.monotonic() > until:
                raise TimeoutError("the reply took too long")
            if len(content) > self._max_bytes:
                raise ReplyTooLargeError(f"more than {self._max_bytes} bytes")
        status, answer = response.status_code, bytes(content)
        if may_pass(status):
            pause = asked_pause(response.headers.get("Retry-After"))
            raise PassingFaultError(f"status {status} {excerpt(answer)}", pause)
        if not 200 <= status < 300:
            raise RefusedError(status, answer)
        return answer


def insist(
    send: Callable[[], bytes],
    attempts: int,
    pauses: Pauses,
    sleep: Callable[[float], None] = time.sleep,
) -> bytes:
    """Send again what fails for a reason that may pass, after growing pauses.

    Args:
        send: sends the request.
        attempts: times that it is sent at most.
        pauses: between the attempts; a server may ask for longer ones.
        sleep: waits.

    Raises:
        PassingFaultError: the last attempt failed too.
        RefusedError, ReplyTooLargeError: as ``HttpClient.send`` raises them, at once.
    """
    for attempt in range(1, attempts):
        try:
            return send()
        except PassingFaultError as fault:
            pause = pauses.after(attempt, fault.pause)
        sleep(pause)
    return send()


def excerpt(content: bytes) -> str:
    """What a reply says: the text of its field ``error``, or its beginning as it is."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        return str(json.loads(content).get("error", ""))[:500]
    return content[:200].decode("utf-8", "replace")


def is_loopback(url: str) -> bool:
    """Whether a url is of this machine.

    Raises:
        ValueError: it is no url.
    """
    return urlsplit(url).hostname in _LOOPBACK


def may_pass(status: int) -> bool:
    """Whether an HTTP status says that the same request may succeed later."""
    return status in _PASSING


def asked_pause(retry_after: str | None) -> float:
    """Seconds that the header ``Retry-After`` asks to wait, 0 without it or where it is a date."""
    value = retry_after or ""
    return float(value) if value.isascii() and value.isdecimal() else 0.0


class Pauses:
    """Pauses that double with every failure in a row, less a random part of half.

    The random part keeps clients that failed together from coming back together. It must differ
    between processes and touches no result, so it is seeded by the system.

    Args:
        first: seconds after the first failure.
        longest: seconds of a pause at most, whatever the server asks for.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._random = random.SystemRandom()

    def after(self, failures: int, asked: float = 0.0) -> float:
        """Seconds to wait after the first (1), second, ... failure in a row.

        Args:
            failures: in a row, this one among them.
            asked: seconds that the server asked for; never less is waited, up to the longest pause.
        """
        grown = min(self._longest, self._first * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
        return max(grown * self._random.uniform(0.5, 1.0), min(asked, self._longest))


def _headers() -> dict[str, str]:
    # Bytes are kept as they are served, and their number is limited: no compression on the way.
    return {"User-Agent": f"calibri/{__version__}", "Accept-Encoding": "identity"}


def _certificates() -> str | bool:
    return next((os.environ[name] for name in _CERTIFICATES if os.environ.get(name)), True)


def _in_words(error: BaseException) -> str:
    """Name the fault itself: the libraries wrap it several times, each in more words."""
    wrapped = error.__cause__ or next((e for e in error.args if isinstance(e, BaseException)), None)
    return _in_words(wrapped) if wrapped else f"{type(error).__name__}: {error}"
