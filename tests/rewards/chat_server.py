"""A server on the loopback that speaks OpenAI's chat API, and misbehaves when told to."""

import json
import threading
import time
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["_Handler"], None]
LATE = {"choices": [{"message": {"content": "Score: 9"}}]}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up on a late answer are expected here."""


class ChatServer:
    """Answers with ``reply(request body)``; ``faults`` come first, one per request."""

    def __init__(self) -> None:
        self.reply: Callable[[dict[str, Any]], Any] = lambda body: "Score: 5"
        self.models = ["tiny-judge"]
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.http = _Server(("127.0.0.1", 0), _Handler)
        self.http.daemon_threads = True
        self.http.chat = self  # type: ignore[attr-defined]
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()


class _Handler(BaseHTTPRequestHandler):
    @property
    def chat(self) -> ChatServer:
        return self.server.chat  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        self._note(None)
        send(self, 200, {"data": [{"id": name} for name in self.chat.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if (fault := self._note(body)) is not None:
            return fault(self)
        send(self, 200, {"choices": [{"message": {"content": self.chat.reply(body)}}]})

    def _note(self, body: dict[str, Any] | None) -> Fault | None:
        chat = self.chat
        with chat.lock:
            chat.paths.append(self.path)
            chat.headers.append(dict(self.headers))
            if body is None:
                return None
            chat.requests.append(body)
            return chat.faults.popleft() if chat.faults else None

    def log_message(self, *args: object) -> None:
        return


def send(handler: BaseHTTPRequestHandler, status: int, value: Any, **headers: str) -> None:
    data = json.dumps(value).encode()
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(data)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(data)


def status(code: int, **headers: str) -> Fault:
    return lambda handler: send(handler, code, {"error": f"told to say {code}"}, **headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def half_a_reply(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"message": {"content": "Score: 9')


def silence(handler: BaseHTTPRequestHandler) -> None:
    """Answer far too late, or when the test is over."""
    handler.server.chat.released.wait(30)  # type: ignore[attr-defined]
    send(handler, 200, LATE)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a byte now and then, so that no single read ever times out, then a late answer."""
    late = b" " * 100 + json.dumps(LATE).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(late)))
    handler.end_headers()
    for byte in late[:100]:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        time.sleep(0.05)
    handler.wfile.write(late[100:])


def not_json(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b"<html>It works!</html>")
