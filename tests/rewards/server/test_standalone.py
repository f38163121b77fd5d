import ast
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from calibri.rewards.server import standalone
from calibri.rewards.server.standalone import InputError, RewardServer, is_loopback
from tests.rewards.server.serving import INFO, ask, form, huge_png, multipart, picture, serving

WEBP = {"format": "WEBP", "lossless": True}


@pytest.fixture(scope="module")
def server():
    limits = {"pixels": 1000, "images": 4, "body_bytes": 20_000, "prompt_characters": 10}
    with serving(limits=limits) as running:
        yield running


def test_scores_come_back_in_order_with_the_variant(server):
    images = [picture(10), picture(200, size=(1, 9)), picture(30, **WEBP)]
    status, reply = ask(server, body=form(["a", "b", "c"], images))
    assert status == 200
    assert reply["scores"] == [10, 200, 30]
    assert reply["failed"] == []
    assert reply["info"] == INFO
    assert reply["ms"] >= 0


def test_info_and_health(server):
    assert ask(server, "GET", "/healthz") == (200, {"status": "ok"})
    status, reply = ask(server, "GET", "/v1/info")
    assert (status, reply["info"], reply["limits"]["images"]) == (200, INFO, 4)


def test_images_that_failed_are_listed_and_null():
    def score(images, prompts):
        return [float("nan"), 2.0, float("inf")]

    with serving(score) as server:
        _, reply = ask(server, body=form(["a"] * 3, [picture(1)] * 3))
    assert reply["scores"] == [None, 2.0, None]
    assert [entry["index"] for entry in reply["failed"]] == [0, 2]


def big_png():
    return picture(0, size=(40, 40))


TRUNCATED = picture(9, size=(30, 30))[:-30]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "boundary"),
        (b"nonsense", 400, "boundary"),
        (form(["a"], [picture(1)])[:-6], 400, "boundary"),
        (multipart({"image_0": picture(1)}), 400, "not JSON"),
        (multipart({"request": b"[" * 100_000})[:19_000] + b"\r\n--xyz--\r\n", 400, "not JSON"),
        (multipart({"request": b"\xff\xfe"}), 400, "not JSON"),
        (multipart({"request": b"[1]"}), 400, "schema"),
        (form(["a"], [picture(1)], {"schema": 2}), 400, "schema"),
        (form(["a"], [picture(1)], {"reward": "hpsv3"}), 404, "reward 'brightness'"),
        (form([], []), 400, "at least one"),
        (form("a", [picture(1)]), 400, "list"),
        (form([1], [picture(1)]), 400, "a prompt is a text"),
        (form(["x" * 11], [picture(1)]), 400, "10 characters"),
        (form(["a"] * 5, [picture(1)] * 5), 413, "at most 4"),
        (form(["a", "b"], [picture(1)]), 400, "image_0 to image_1"),
        (form(["a"], [picture(1), picture(1)]), 400, "image_0"),
        (form(["a"], [b"not an image"]), 400, "no readable PNG"),
        (form(["a"], [picture(1, format="JPEG")]), 400, "no readable PNG"),
        (form(["a"], [picture(1, format="WEBP", lossless=False)]), 415, "lossless"),
        (form(["a"], [picture(0, mode="L")]), 415, "not L"),
        (form(["a"], [picture(0, mode="I;16")]), 415, "8 bits"),
        (form(["a"], [TRUNCATED]), 400, "damaged"),
        (form(["a"], [big_png()]), 413, "more than 1000 pixels"),
        (form(["a"] * 2, [picture(0, size=(30, 20))] * 2), 413, "together"),
        (multipart({"a": b"", "request": b"{}"}).replace(b'"a"', b'"request"'), 400, "of another"),
        (b"--xyz\r\nContent-Type: x\r\n\r\n1\r\n--xyz--\r\n", 400, "no name"),
        (b"--xyz\r\n" + b"h" * 3000 + b"\r\n\r\n1\r\n--xyz--\r\n", 400, "2048 bytes"),
        (b"x" * 20_001, 413, "20000 bytes"),
    ],
)
def test_faulty_requests_are_the_clients_fault_and_hurt_nobody(server, body, status, words):
    found, reply = ask(server, body=body)
    assert (found, words in reply["error"]) == (status, True), reply
    assert ask(server, body=form(["a"], [picture(7)]))[1]["scores"] == [7]


@pytest.mark.parametrize(("side", "status"), [(2000, 413), (10**5, 400)])
def test_an_image_that_says_it_is_huge_is_never_decoded(server, side, status):
    assert ask(server, body=form(["a"], [huge_png(side)]))[0] == status


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ({"path": "/v1/other"}, 404),
        ({"method": "GET", "path": "/v1/other"}, 404),
        ({"Content_Type": "application/json"}, 415),
        ({"Content_Type": "multipart/form-data"}, 400),
        ({"Content_Type": "multipart/form-data; boundary=" + "x" * 71}, 400),
        ({"Origin": "https://example.org"}, 403),
        ({"X_Long": "x" * 17_000}, 431),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "9" * 30}, 413),
    ],
)
def test_faulty_headers_and_paths(server, arguments, status):
    assert ask(server, **({"body": form(["a"], [picture(1)])} | arguments))[0] == status


def test_a_body_without_a_length_is_refused(server):
    chunks = iter([form(["a"], [picture(1)])])
    assert ask(server, body=chunks)[0] == 411


def test_a_body_that_is_cut_off_is_the_clients_fault(server):
    with socket.create_connection(urlsplit(server.url).netloc.split(":"), timeout=5) as client:
        client.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        client.shutdown(socket.SHUT_WR)
        assert b" 400 " in client.makefile("rb").readline()


def test_a_large_refused_body_still_gets_its_answer():
    with serving(limits={"body_bytes": 1000}) as server:
        status, reply = ask(server, body=b"x" * 5_000_000)
    assert (status, "1000 bytes" in reply["error"]) == (413, True)


def test_a_client_that_sends_too_slowly_is_cut_off():
    with serving(limits={"read_seconds": 0.2, "connections": 1}) as server:
        with socket.create_connection(server.server_address, timeout=10) as slow:
            slow.sendall(b"POST /v1/score HTTP/1.1\r\n")
            assert ask(server, "GET", "/healthz")[0] == 429
            assert b" 411 " in slow.makefile("rb").read()
        deadline = time.monotonic() + 10
        while ask(server, "GET", "/healthz")[0] != 200:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("said", [b"", b"POST /v1/score HTTP/1.1\r\n"])
def test_idle_connections_lock_nobody_out(said):
    body = form(["a"], [picture(5)])
    limits = {"connections": 8, "idle_seconds": 0.2}
    with serving(token="secret", limits=limits) as server, contextlib.ExitStack() as idle:
        for _ in range(24):
            client = idle.enter_context(socket.create_connection(server.server_address, timeout=10))
            with contextlib.suppress(OSError):  # the last ones are refused at once
                client.sendall(said)
        time.sleep(0.4)
        for _ in range(20):
            assert ask(server, body=body, Authorization="Bearer secret")[0] == 200


def test_a_connection_with_the_token_is_not_closed_for_another():
    body = form(["a"], [picture(5)])
    limits = {"connections": 1, "idle_seconds": 0.0}
    head = (
        "POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
        f"Content-Type: multipart/form-data; boundary=xyz\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with (
        serving(token="secret", limits=limits) as server,
        socket.create_connection(server.server_address, timeout=10) as slow,
    ):
        slow.sendall(head.encode() + body[:20])
        time.sleep(0.3)
        assert ask(server, "GET", "/healthz")[0] == 429
        slow.sendall(body[20:])
        assert b" 200 " in slow.makefile("rb").readline()


def test_a_body_of_nothing_but_boundaries_takes_no_memory():
    body = b"--x" + 500_000 * b"ab\r\n--x" + b"--\r\n"
    tracemalloc.start()
    with pytest.raises(Exception, match="at most 32 images"):
        standalone.read_multipart(body, "multipart/form-data; boundary=x", 33)
    assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    tracemalloc.stop()


@pytest.mark.parametrize("given", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "s"}])
def test_a_token_is_needed_where_one_is_set(given):
    body = form(["a"], [picture(5)])
    with serving(token="secret") as server:
        assert ask(server, body=body, **given)[0] == 401
        assert ask(server, "GET", "/v1/info", **given)[0] == 401
        assert ask(server, "GET", "/healthz", **given)[0] == 200
        assert ask(server, body=body, Authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_other_machines_are_not_let_in_without_a_token(host):
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="no token"):
        RewardServer(lambda images, prompts: [], INFO, host, 0)


@pytest.mark.parametrize("info", [{}, {"name": "x"}, {"variant": "x"}])
def test_what_is_served_must_be_said(info):
    with pytest.raises(ValueError, match="'name' and a 'variant'"):
        RewardServer(lambda images, prompts: [], info, port=0)


def test_a_reward_that_refuses_its_input_says_so_and_others_are_scored():
    def score(images, prompts):
        if "bad" in prompts:
            raise InputError("cannot read 'bad'")
        return [1.0] * len(images)

    with serving(score) as server:
        assert ask(server, body=form(["bad"], [picture(1)])) == (
            422,
            {"error": "cannot read 'bad'"},
        )
        assert ask(server, body=form(["good"], [picture(1)]))[0] == 200


@pytest.mark.parametrize("wrong", [lambda i, p: [1.0], lambda i, p: 1 / 0, lambda i, p: ["x"] * 2])
def test_a_reward_that_breaks_is_the_servers_fault(wrong, capsys):
    with serving(wrong) as server:
        status, reply = ask(server, body=form(["a", "b"], [picture(1)] * 2))
    assert (status, "the reward failed" in reply["error"]) == (500, True)
    assert "Traceback" in capsys.readouterr().err


class Gate:
    """A reward that waits until it is opened, and remembers its batches."""

    def __init__(self):
        self.opened, self.entered = threading.Event(), threading.Semaphore(0)
        self.batches = []

    def __call__(self, images, prompts):
        self.entered.release()
        assert self.opened.wait(10)
        self.batches.append(list(prompts))
        if "bad" in prompts:
            raise InputError("bad")
        return [float(prompt) for prompt in prompts]


def together(server, bodies):
    replies = [None] * len(bodies)

    def run(i):
        replies[i] = ask(server, body=bodies[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    return threads, replies


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def queue_behind(server, gate, prompts):
    """One request in the scoring thread, and one for each of ``prompts`` in the queue."""
    threads, replies = together(server, [form([p], [picture(1)]) for p in ["0", *prompts]])
    threads[0].start()
    assert gate.entered.acquire(timeout=10)
    for i, thread in enumerate(threads[1:], 1):
        thread.start()
        wait_for(lambda i=i: server.scorer.waiting == i)
    gate.opened.set()
    for thread in threads:
        thread.join()
    return replies


def test_waiting_requests_are_merged_into_batches_that_fit():
    gate = Gate()
    with serving(gate, limits={"images": 2}) as server:
        replies = queue_behind(server, gate, ["1", "2", "3"])
    assert [reply["scores"] for _, reply in replies] == [[0], [1], [2], [3]]
    assert gate.batches == [["0"], ["1", "2"], ["3"]]


def test_requests_are_not_merged_for_rewards_that_compare_images():
    gate = Gate()
    with serving(gate, merge=False) as server:
        replies = queue_behind(server, gate, ["1", "2"])
    assert [reply["scores"] for _, reply in replies] == [[0], [1], [2]]
    assert gate.batches == [["0"], ["1"], ["2"]]


def test_one_bad_request_does_not_fail_those_it_was_merged_with():
    gate = Gate()
    with serving(gate) as server:
        replies = queue_behind(server, gate, ["1", "bad", "3"])
    assert [status for status, _ in replies] == [200, 200, 422, 200]
    assert gate.batches[1:] == [["1", "bad", "3"], ["1"], ["bad"], ["3"]]


def test_a_full_queue_answers_429_and_takes_work_again_later():
    gate = Gate()
    with serving(gate, limits={"requests": 1}) as server:
        threads, replies = together(server, [form(["1"], [picture(1)])])
        threads[0].start()
        assert gate.entered.acquire(timeout=10)
        assert ask(server, body=form(["2"], [picture(1)]))[0] == 429
        gate.opened.set()
        threads[0].join()
        assert ask(server, body=form(["2"], [picture(1)]))[1]["scores"] == [2]
    assert replies[0][1]["scores"] == [1]


def test_stopping_finishes_what_waits_and_refuses_what_comes():
    gate = Gate()
    with serving(gate) as server:
        threads, replies = together(server, [form([p], [picture(1)]) for p in "12"])
        threads[0].start()
        assert gate.entered.acquire(timeout=10)
        threads[1].start()
        wait_for(lambda: server.scorer.waiting == 1)
        stopper = threading.Thread(target=server.scorer.stop, args=(10.0,))
        stopper.start()
        wait_for(lambda: server.scorer.stopping)
        assert ask(server, "GET", "/healthz")[0] == 503
        assert ask(server, body=form(["3"], [picture(1)]))[0] == 503
        gate.opened.set()
        for thread in [stopper, *threads]:
            thread.join()
    assert [reply["scores"] for _, reply in replies] == [[1], [2]]


def test_a_request_that_takes_too_long_is_given_up_and_not_scored_later():
    gate = Gate()
    with serving(gate, limits={"score_seconds": 0.2}) as server:
        threads, replies = together(server, [form([p], [picture(1)]) for p in "12"])
        threads[0].start()
        assert gate.entered.acquire(timeout=10)
        threads[1].start()
        for thread in threads:
            thread.join()
        gate.opened.set()
    assert [status for status, _ in replies] == [503, 503]
    assert gate.batches == [["1"]]


def test_many_clients_at_once_lose_nothing():
    with serving(limits={"requests": 64}) as server:
        threads, replies = together(server, [form(["a"], [picture(i)]) for i in range(40)])
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [reply["scores"] for _, reply in replies] == [[float(i)] for i in range(40)]


SOURCE = Path(standalone.__file__)


def test_the_file_is_python_3_9_with_pillow_and_nothing_else():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 9))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    assert modules - {"PIL"} <= sys.stdlib_module_names


def test_the_file_serves_on_its_own_and_stops_on_a_signal(tmp_path):
    (tmp_path / "standalone.py").write_bytes(SOURCE.read_bytes())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import standalone;"
        "standalone.serve(lambda i, p: [float(len(t)) for t in p],"
        " {'name': 'brightness', 'variant': '1'}, port=0);"
        "assert not [m for m in ('torch', 'calibri', 'numpy') if m in sys.modules]"
    )
    command = [sys.executable, "-u", "-I", "-c", program, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = child.stdout.readline()

        class At:
            url = line.split()[-1]

        assert ask(At, body=form(["abc"], [picture(1)]))[1]["scores"] == [3]
        assert json.loads(json.dumps(ask(At, "GET", "/v1/info")[1]["info"]))["variant"] == "1"
    finally:
        child.terminate()
        _, errors = child.communicate(timeout=20)
    assert (child.returncode, errors) == (0, "")
