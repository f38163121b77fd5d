import contextlib
import http.server
import threading
import time

import pytest

from calibri.http_client import (
    HttpClient,
    PassingFaultError,
    Pauses,
    RefusedError,
    ReplyTooLargeError,
    asked_pause,
    insist,
    is_loopback,
    may_pass,
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Notes every request, and answers as its server was told."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        self.server.answer(self)

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.do_GET()

    def log_message(self, *args):
        """Print nothing."""


def say(handler, status=200, content=b"fine", **headers):
    handler.send_response(status)
    for name, text in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), text)
    handler.end_headers()
    handler.wfile.write(content)


@contextlib.contextmanager
def serving(answer=say):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.answer, server.seen, server.bodies = answer, [], []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_a_body_arrives_and_the_reply_comes_back_as_it_was():
    with serving(lambda handler: say(handler, content=b"\x00\xff")) as server:
        reply = HttpClient(token="t").send("POST", server.url, b"body", {"X-Mine": "1"})
    assert (reply, server.bodies) == (b"\x00\xff", [b"body"])
    headers = server.seen[0][1]
    assert (headers["Authorization"], headers["X-Mine"]) == ("Bearer t", "1")
    assert headers["Accept-Encoding"] == "identity"
    assert headers["User-Agent"].startswith("calibri/")


def test_a_password_of_the_users_files_is_never_sent(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with serving() as server:
        HttpClient(token="t").send("GET", server.url)
        HttpClient().send("GET", server.url)
    assert server.seen[0][1]["Authorization"] == "Bearer t"
    assert "Authorization" not in server.seen[1][1]


def test_redirects_are_followed_when_asked_and_never_with_a_token():
    with serving() as other:

        def away(handler):
            say(handler, 302, Location=other.url + "/there")

        with serving(away) as server:
            assert HttpClient(redirects=True).send("GET", server.url) == b"fine"
            for client in (HttpClient(), HttpClient(token="t", redirects=True)):
                with pytest.raises(RefusedError, match="status 302"):
                    client.send("GET", server.url)
    assert [path for path, _ in other.seen] == ["/there"]


def test_proxies_are_used_unless_told_otherwise_and_never_for_this_machine(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving() as proxy, serving() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert HttpClient().send("GET", "http://far.invalid/x") == b"fine"
        assert [path for path, _ in proxy.seen] == ["http://far.invalid/x"]
        with pytest.raises(PassingFaultError):
            HttpClient(proxies=False).send("GET", "http://far.invalid/x")
        HttpClient().send("GET", server.url)
        assert (len(proxy.seen), len(server.seen)) == (1, 1)


def test_a_reply_is_read_up_to_a_limit():
    with serving(lambda handler: say(handler, content=b"12345")) as server:
        assert HttpClient(max_bytes=5).send("GET", server.url) == b"12345"
        with pytest.raises(ReplyTooLargeError, match="more than 4 bytes"):
            HttpClient(max_bytes=4).send("GET", server.url)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"error": "no such thing"}', "no such thing"), (b"<p>\xff", "<p>\ufffd"), (b"[1]", "[1]")],
)
def test_a_refusal_says_what_the_server_said(content, said):
    with (
        serving(lambda handler: say(handler, 404, content)) as server,
        pytest.raises(RefusedError) as caught,
    ):
        HttpClient().send("GET", server.url)
    assert (caught.value.status, str(caught.value)) == (404, f"status 404: {said}")


def test_a_fault_that_may_pass_tells_the_pause_that_was_asked_for():
    with (
        serving(lambda handler: say(handler, 429, b"busy", Retry_After="7")) as server,
        pytest.raises(PassingFaultError, match="status 429 busy") as caught,
    ):
        HttpClient().send("GET", server.url)
    assert caught.value.pause == 7.0


def test_half_a_reply_is_a_fault_that_may_pass():
    with (
        serving(lambda handler: say(handler, **{"Content-Length": "9"})) as server,
        pytest.raises(PassingFaultError, match=r"^IncompleteRead: "),
    ):
        HttpClient().send("GET", server.url)


def test_nobody_there_is_said_in_few_words():
    with serving() as server:
        url = server.url
    with pytest.raises(PassingFaultError, match=r"^ConnectionRefusedError: .*refused$"):
        HttpClient().send("GET", url)


def test_a_server_that_drips_meets_the_timeout():
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                handler.wfile.write(b" ")
                time.sleep(0.05)

    with serving(drip) as server:
        began = time.monotonic()
        with pytest.raises(PassingFaultError, match="took too long"):
            HttpClient(timeout=60.0).send("GET", server.url, timeout=0.4)
        assert time.monotonic() - began < 5.0


def test_attempts_are_bounded_and_pauses_heed_the_server():
    faults, slept = [PassingFaultError("a"), PassingFaultError("b", 3.0)], []

    def send():
        if faults:
            raise faults.pop(0)
        return b"done"

    assert insist(send, 3, Pauses(1.0, 5.0), slept.append) == b"done"
    assert 0.5 <= slept[0] <= 1.0
    assert slept[1] == 3.0
    faults[:] = [PassingFaultError(str(i)) for i in range(9)]
    with pytest.raises(PassingFaultError, match="2"):
        insist(send, 3, Pauses(1.0, 5.0), slept.append)
    assert len(faults) == 6


def test_a_refusal_is_not_tried_again():
    asked = []

    def send():
        asked.append(1)
        raise RefusedError(404, b"")

    with pytest.raises(RefusedError):
        insist(send, 9, Pauses(1.0, 5.0), asked.append)
    assert asked == [1]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "localhost", "[::1]:8000"])
def test_this_machine_is_known(host):
    assert is_loopback(f"http://{host}/v1")
    assert not is_loopback(f"http://{host.split(':')[0]}.example.com".replace("[.", "a."))


def test_only_statuses_that_may_pass_are_tried_again():
    passing = {status for status in range(100, 600) if may_pass(status)}
    assert passing == {408, 429, 500, 502, 503, 504}


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 0), ("", 0), ("7", 7), ("-1", 0), ("1.5", 0), ("\u0663", 0), ("Wed, 21 Oct", 0)],
)
def test_the_header_is_read_or_left_alone(header, seconds):
    assert asked_pause(header) == seconds


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 5, 50, 5000])
def test_pauses_double_up_to_the_longest_less_half_at_most(failures):
    pauses = Pauses(first=0.1, longest=1.0)
    full = min(1.0, 0.1 * 2.0 ** min(failures - 1, 50))
    found = {pauses.after(failures) for _ in range(200)}
    assert full / 2 <= min(found) < max(found) <= full
    assert max(found) - min(found) > full / 4  # clients that failed together come back apart


def test_what_the_server_asks_is_waited_but_never_beyond_the_longest():
    pauses = Pauses(first=0.1, longest=5.0)
    assert pauses.after(1, asked=3.0) == 3.0
    assert pauses.after(1, asked=asked_pause("9" * 400)) == 5.0
    assert pauses.after(1, asked=0.001) >= 0.05
