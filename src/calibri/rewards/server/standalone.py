"""Serve any ``score(images, prompts)`` over HTTP; one file for Python 3.9 and later with Pillow.

Copy this file into the environment of a reward whose package has old pins, and serve it there::

    import standalone

    def score(images, prompts):  # RGB Pillow images and texts to one number each; NaN = failed
        return [float(model.score(p, i)) for i, p in zip(images, prompts)]

    standalone.serve(score, {"name": "hpsv3", "variant": "official package 1.0.0"}, port=8765)

``POST /v1/score`` takes multipart/form-data: a part ``request`` of JSON ``{"schema": 1, "reward":
name, "prompts": [...]}`` and parts ``image_0``, ``image_1``, ... of PNG or lossless WebP. It
answers ``{"scores": [...], "failed": [{"index", "error"}], "info": {...}, "ms": ...}``; a score
that is null is of an image that failed. ``GET /v1/info`` tells what is served, ``GET /healthz``
whether. A status of 4xx says that the same request can never succeed, except 408 and 429.
"""

from __future__ import annotations

import contextlib
import hmac
import io
import ipaddress
import json
import math
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

SCHEMA = 1
TOKEN_VARIABLE = "CALIBRI_REWARD_TOKEN"

Images = list[Image.Image]
Score = Callable[[Images, list[str]], Iterable[float]]


class InputError(ValueError):
    """Raised by a score function for images or prompts that it can never score."""


@dataclass(frozen=True)
class Limits:
    """What a server accepts.

    Attributes:
        body_bytes: of one request.
        header_bytes: of all headers of one request.
        pixels: of all images of one request.
        images: of one request, and of the batches that requests are merged into.
        prompt_characters: of one prompt.
        requests: read, waiting or scored at a time; more are answered with 429. Decoded images
            of all of them take up to 3 x pixels x requests bytes.
        connections: open at a time; more are answered with 429, unless one can be closed for them.
        idle_seconds: after which a connection that has shown neither headers nor the token it needs
            may be closed for another.
        read_seconds: for a whole request to arrive.
        score_seconds: for it to be scored once it has arrived.
    """

    body_bytes: int = 64 * 2**20
    header_bytes: int = 16 * 2**10
    pixels: int = 16 * 2**20
    images: int = 32
    prompt_characters: int = 4000
    requests: int = 16
    connections: int = 64
    idle_seconds: float = 2.0
    read_seconds: float = 60.0
    score_seconds: float = 600.0


class _HTTPError(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class _Job:
    images: Images
    prompts: list[str]
    done: threading.Event = field(default_factory=threading.Event)
    scores: list[float] = field(default_factory=list)
    error: _HTTPError | None = None
    abandoned: bool = False


class Scorer:
    """One thread that scores, and merges small requests that wait into one batch.

    Args:
        score: from Pillow images and as many texts to as many numbers.
        limits: of requests and batches.
        merge: whether images of several requests may be scored together.
    """

    def __init__(self, score: Score, limits: Limits, merge: bool = True) -> None:
        self._score = score
        self._limits = limits
        self._merge = merge
        self._slots = threading.BoundedSemaphore(limits.requests)
        self._jobs: queue.Queue[_Job] = queue.Queue()
        self._next: _Job | None = None  # taken from the queue and kept for the next batch
        self._lock = threading.Lock()  # nothing is queued after stopping is set
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether new work is refused."""
        return self._stopping.is_set()

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return self._jobs.qsize()

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places for requests, so that their number bounds the memory."""
        if self.stopping:
            raise _HTTPError(503, "the server is stopping")
        if not self._slots.acquire(blocking=False):
            raise _HTTPError(429, f"{self._limits.requests} requests are being worked on already")
        try:
            yield
        finally:
            self._slots.release()

    def submit(self, images: Images, prompts: list[str]) -> list[float]:
        """Wait for the scores of images.

        Raises:
            _HTTPError: the server stops, or the images cannot be scored or not in time.
        """
        job = _Job(images, prompts)
        with self._lock:
            if self.stopping:
                raise _HTTPError(503, "the server is stopping")
            self._jobs.put(job)
        if not job.done.wait(self._limits.score_seconds):
            job.abandoned = True
            raise _HTTPError(503, f"not scored within {self._limits.score_seconds:g} seconds")
        if job.error is not None:
            raise job.error
        return job.scores

    def stop(self, seconds: float) -> None:
        """Refuse new work, finish what waits, and return after at most ``seconds``."""
        with self._lock:
            self._stopping.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while True:
            jobs = self._take()
            if jobs:
                self._score_jobs(jobs)
            elif self.stopping and self._jobs.empty():
                return

    def _take(self) -> list[_Job]:
        """Take the oldest job, and those that follow as long as they fit into one batch."""
        jobs: list[_Job] = []
        count = 0
        while not jobs or self._merge:
            job = self._next or self._get(wait=not jobs)
            self._next = None
            if job is None:
                break
            if jobs and count + len(job.images) > self._limits.images:
                self._next = job
                break
            if not job.abandoned:
                jobs.append(job)
                count += len(job.images)
        return jobs

    def _get(self, wait: bool) -> _Job | None:
        try:
            return self._jobs.get(timeout=0.1) if wait else self._jobs.get_nowait()
        except queue.Empty:
            return None

    def _score_jobs(self, jobs: list[_Job]) -> None:
        images = [image for job in jobs for image in job.images]
        try:
            scores = self._call(images, [prompt for job in jobs for prompt in job.prompts])
        except Exception as error:
            if len(jobs) > 1:  # one bad request must not fail the others
                for job in jobs:
                    self._score_jobs([job])
                return
            jobs[0].error = _as_http_error(error)
            jobs[0].done.set()
            return
        for job in jobs:
            job.scores, scores = scores[: len(job.images)], scores[len(job.images) :]
            job.done.set()

    def _call(self, images: Images, prompts: list[str]) -> list[float]:
        scores = [float(score) for score in self._score(images, prompts)]
        if len(scores) != len(images):
            raise RuntimeError(f"the reward gave {len(scores)} scores for {len(images)} images")
        return scores


def _as_http_error(error: Exception) -> _HTTPError:
    if isinstance(error, InputError):
        return _HTTPError(422, str(error))
    traceback.print_exception(type(error), error, error.__traceback__)
    return _HTTPError(500, f"the reward failed: {type(error).__name__}: {error}")


def read_multipart(body: bytes, content_type: str, most: int) -> dict[str, bytes]:
    """Split a multipart/form-data body into at most ``most`` parts by name.

    Raises:
        _HTTPError: it is of another type or malformed, has more parts, or a name is missing or
            repeated.
    """
    kind, _, parameters = content_type.partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise _HTTPError(415, "send multipart/form-data")
    boundary = _parameter(parameters, "boundary").encode()
    if not 1 <= len(boundary) <= 70:
        raise _HTTPError(400, "the Content-Type has no boundary of 1 to 70 characters")
    # No more pieces than can be parts: a body of nothing but boundaries would fill the memory.
    sections = (b"\r\n" + body).split(b"\r\n--" + boundary, most + 2)
    if len(sections) > most + 2:
        raise _HTTPError(413, f"more than {most} parts; at most {most - 1} images fit in a request")
    if len(sections) < 3 or sections[0] or sections[-1].strip() != b"--":
        raise _HTTPError(400, "the multipart body does not begin and end with its boundary")
    parts: dict[str, bytes] = {}
    for section in sections[1:-1]:
        head, separator, content = section.partition(b"\r\n\r\n")
        name = _part_name(head)
        if not separator or not name or name in parts:
            raise _HTTPError(400, "a part of the body has no name, or the name of another")
        parts[name] = content
    return parts


def _part_name(head: bytes) -> str:
    if len(head) > 2048:
        raise _HTTPError(400, "a part of the body has more than 2048 bytes of headers")
    for line in head.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            return _parameter(value, "name")
    return ""


def _parameter(text: str, name: str) -> str:
    for item in text.split(";"):
        key, _, value = item.partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"')
    return ""


def read_request(parts: dict[str, bytes], reward: str, limits: Limits) -> tuple[Images, list[str]]:
    """Check a request and decode its images: Pillow RGB images, and their prompts.

    Raises:
        _HTTPError: anything is missing, malformed, too large or for another reward.
    """
    try:
        request = json.loads(parts.pop("request", b"").decode("utf-8"))
    except (ValueError, RecursionError):
        raise _HTTPError(400, "the part 'request' is missing or not JSON") from None
    if not isinstance(request, dict) or request.get("schema") != SCHEMA:
        raise _HTTPError(400, f"the part 'request' must be an object with \"schema\": {SCHEMA}")
    if request.get("reward") != reward:
        raise _HTTPError(404, f"this server has the reward '{reward}'")
    prompts = _checked_prompts(request.get("prompts"), limits)
    names = [f"image_{i}" for i in range(len(prompts))]
    if set(names) != set(parts):
        raise _HTTPError(400, f"{len(prompts)} prompts need the parts image_0 to {names[-1]}")
    images = [_opened(parts[name], name) for name in names]
    # Sizes stand in the headers: nothing is decoded before this.
    if sum(image.width * image.height for image in images) > limits.pixels:
        raise _HTTPError(413, f"the images have more than {limits.pixels} pixels together")
    for name, image in zip(names, images):  # noqa: B905 - Python 3.9 has no strict
        _load(image, name)
    return images, prompts


def _checked_prompts(prompts: Any, limits: Limits) -> list[str]:
    if not isinstance(prompts, list) or not prompts:
        raise _HTTPError(400, "'prompts' must be a list of at least one text")
    if len(prompts) > limits.images:
        raise _HTTPError(413, f"at most {limits.images} images fit in a request")
    longest = limits.prompt_characters
    if not all(isinstance(prompt, str) and len(prompt) <= longest for prompt in prompts):
        raise _HTTPError(400, f"a prompt is a text of at most {longest} characters")
    return prompts


def _opened(data: bytes, name: str) -> Image.Image:
    # A WebP that is not VP8L is lossy: the reward would judge the compression.
    if data[:4] == b"RIFF" and data[12:16] != b"VP8L":
        raise _HTTPError(415, f"{name} is not a lossless WebP")
    try:
        image = Image.open(io.BytesIO(data), formats=["PNG", "WEBP"])
    except Exception as error:  # Pillow's decoders raise what they like
        raise _HTTPError(400, f"{name} is no readable PNG or WebP: {error}") from None
    if image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
        raise _HTTPError(415, f"{name} must be one RGB image of 8 bits, not {image.mode}")
    return image


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception as error:
        raise _HTTPError(400, f"{name} is damaged: {error}") from None


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    protocol_version = "HTTP/1.1"
    server_version = "calibri-reward"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer /healthz and /v1/info."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer /v1/score."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing about single requests."""

    def _answer(self, handle: Callable[[], dict[str, Any]]) -> None:
        with self.server.request_in_flight():
            try:
                self._check_headers()
                self._send(200, handle())
            except _HTTPError as error:
                self._send(error.status, {"error": str(error)})
                self._linger()

    def _check_headers(self) -> None:
        size = sum(len(key) + len(value) for key, value in self.headers.items())
        if size > self.server.limits.header_bytes:
            raise _HTTPError(431, "the headers are too large")
        if "Origin" in self.headers:  # only a page in a browser sends it
            raise _HTTPError(403, "requests of web pages are refused")

    def _check_token(self) -> None:
        token = self.server.token
        given = self.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise _HTTPError(401, "a bearer token is needed")
        self.server.welcome(self.connection)

    def _get(self) -> dict[str, Any]:
        if self.path == "/healthz":
            if self.server.scorer.stopping:
                raise _HTTPError(503, "the server is stopping")
            return {"status": "ok"}
        self._check_token()
        if self.path == "/v1/info":
            limits = asdict(self.server.limits)
            return {"schema": SCHEMA, "info": self.server.info, "limits": limits}
        raise _HTTPError(404, "there are /v1/score, /v1/info and /healthz")

    def _post(self) -> dict[str, Any]:
        self._check_token()
        if self.path != "/v1/score":
            raise _HTTPError(404, "POST to /v1/score")
        started = time.monotonic()
        server = self.server
        with server.scorer.slot():
            kind = self.headers.get("Content-Type", "")
            # The request and its images.
            parts = read_multipart(self._body(), kind, server.limits.images + 1)
            images, prompts = read_request(parts, server.info["name"], server.limits)
            scores = server.scorer.submit(images, prompts)
        bad = [i for i, score in enumerate(scores) if not math.isfinite(score)]
        return {
            "schema": SCHEMA,
            "scores": [score if math.isfinite(score) else None for score in scores],
            "failed": [{"index": i, "error": f"the score is {scores[i]}"} for i in bad],
            "info": server.info,
            "ms": round(1000 * (time.monotonic() - started), 3),
        }

    def _body(self) -> bytes:
        limit = self.server.limits.body_bytes
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or "Transfer-Encoding" in self.headers:
            raise _HTTPError(411, "send a Content-Length")
        if int(length[:20]) > limit:
            raise _HTTPError(413, f"the body has more than {limit} bytes")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise _HTTPError(400, f"the body ended after {len(body)} of {length} bytes")
        self.server.arrived(self.connection)
        return body

    def _send(self, status: int, reply: dict[str, Any]) -> None:
        data = json.dumps(reply).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(data)

    def _linger(self) -> None:
        """Read on for a moment: closing with unread bytes would cut off the answer."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(0.5)
            deadline = time.monotonic() + 5.0
            while self.connection.recv(1 << 16) and time.monotonic() < deadline:
                pass


class RewardServer(ThreadingHTTPServer):
    """An HTTP server for one score function.

    Args:
        score: from a list of RGB Pillow images and a list of texts to a list of floats.
        info: at least ``name`` and ``variant``; sent with every reply.
        host: loopback unless there is a token.
        port: 0 for any free one; see ``url``.
        token: clients must send it as ``Authorization: Bearer <token>``.
        limits: what is accepted.
        merge: whether images of several requests may be scored together.

    Raises:
        ValueError: the host is not loopback and there is no token, or the info is incomplete.
        OSError: the port is in use.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        score: Score,
        info: dict[str, Any],
        host: str = "127.0.0.1",
        port: int = 8765,
        token: str = "",
        limits: Limits = Limits(),
        merge: bool = True,
    ) -> None:
        if not token and not is_loopback(host):
            raise ValueError(
                f"'{host}' can be reached from other machines, and there is no token. Set "
                f"{TOKEN_VARIABLE}, or bind to 127.0.0.1."
            )
        if not info.get("name") or not info.get("variant"):
            raise ValueError("info needs a 'name' and a 'variant' that says what makes the scores.")
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.info, self.token, self.limits = dict(info), token, limits
        self._connections = threading.BoundedSemaphore(limits.connections)
        self._lock = threading.Condition()  # of the three below
        self._arriving: dict[socket.socket, float] = {}
        self._strangers: dict[socket.socket, float] = {}  # since when, the oldest first
        self._in_flight = 0
        super().__init__((host, port), _Handler)
        self.scorer = Scorer(score, limits, merge)

    @property
    def url(self) -> str:
        """Where the server is."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread of its own, unless too many are open."""
        if not self._connections.acquire(blocking=False) and not self._made_room():
            refuse_connection(request)
            self.shutdown_request(request)
            return
        with self._lock:
            self._arriving[request] = time.monotonic() + self.limits.read_seconds
            self._strangers[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.arrived(request)
            self.welcome(request)
            self._connections.release()

    def _made_room(self) -> bool:
        """Close the connection that has idled longest, and take its place.

        Otherwise whoever opens enough of them and says nothing locks out those who have the token.
        """
        with self._lock:
            oldest, since = next(iter(self._strangers.items()), (None, math.inf))
            if oldest is None or time.monotonic() - since < self.limits.idle_seconds:
                return False
            del self._strangers[oldest]
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        # Its thread reads the end of the stream and goes.
        return self._connections.acquire(timeout=1.0)

    def welcome(self, connection: socket.socket) -> None:
        """Keep a connection open that has shown what it needs, however many others come."""
        with self._lock:
            self._strangers.pop(connection, None)

    def arrived(self, connection: socket.socket) -> None:
        """Stop the clock that a connection has for sending its request."""
        with self._lock:
            self._arriving.pop(connection, None)

    def service_actions(self) -> None:
        """Cut connections that send too slowly; called twice a second."""
        now = time.monotonic()
        with self._lock:
            late = [c for c, deadline in self._arriving.items() if now > deadline]
        for connection in late:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    @contextlib.contextmanager
    def request_in_flight(self) -> Iterator[None]:
        """Count a request, so that stopping can wait until it is answered."""
        with self._lock:
            self._in_flight += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that went away; show everything else."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def stop(self, seconds: float = 30.0) -> None:
        """Answer 503 from now on, finish what waits, then close the socket."""
        self.scorer.stop(seconds)
        with self._lock:
            self._lock.wait_for(lambda: self._in_flight == 0, seconds)
        self.shutdown()
        self.server_close()


def refuse_connection(connection: socket.socket) -> None:
    """Answer 429 to a connection without reading from it."""
    body = b'{"error": "too many connections"}'
    head = (
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.sendall(head.encode() + body)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    score: Score, info: dict[str, Any], host: str = "127.0.0.1", port: int = 8765, **options: Any
) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what waits; the token is in the environment.

    Args:
        score: see ``RewardServer``.
        info: see ``RewardServer``.
        host: see ``RewardServer``.
        port: see ``RewardServer``.
        options: ``limits`` and ``merge`` of ``RewardServer``.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    server = RewardServer(score, info, host, port, token, **options)
    wanted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: wanted.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"serving {info['name']} ({info['variant']}) at {server.url}", flush=True)
    wanted.wait()
    print("stopping", flush=True)
    server.stop()
