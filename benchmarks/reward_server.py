"""Load and faults of the reward server, on loopback: figures, and a check that nothing is lost.

Run it with ``python benchmarks/reward_server.py``; it takes about a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from calibri.rewards.remote import RemoteReward

SERVER = """
import sys, time
from calibri.rewards.server.standalone import serve
def score(images, prompts):
    time.sleep(float(sys.argv[2]))
    return [sum(image.tobytes()) / len(image.tobytes()) for image in images]
serve(score, {"name": "brightness", "variant": "mean of all channels"}, port=int(sys.argv[1]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(port: int, seconds: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER, str(port), str(seconds)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline().startswith("serving")
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


def pictures(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def lost(scores: Tensor, images: Tensor) -> int:
    expected = images.float().mean((1, 2, 3))
    return int((~torch.isclose(scores, expected, rtol=1e-5)).sum())


def load(size: int, clients: int, requests: int, images_per_request: int) -> None:
    port = free_port()
    images = pictures(images_per_request, size)
    prompts = ["a prompt"] * len(images)
    seconds: list[float] = []
    missing = 0
    with serving(port), ThreadPoolExecutor(clients) as pool:
        reward = RemoteReward(f"http://127.0.0.1:{port}", batch_size=images_per_request)
        _ = reward.info

        def one(_: int) -> int:
            started = time.perf_counter()
            scores = reward.score(images, prompts)
            seconds.append(time.perf_counter() - started)
            return lost(scores, images)

        started = time.perf_counter()
        missing = sum(pool.map(one, range(requests)))
        total = time.perf_counter() - started
    ordered = sorted(seconds)
    print(
        f"load: {requests} requests of {images_per_request} images of {size} px from {clients} "
        f"clients: {requests / total:.0f} requests/s, "
        f"{requests * len(images) / total:.0f} images/s, "
        f"median {1e3 * statistics.median(ordered):.0f} ms, 95% under "
        f"{1e3 * ordered[int(0.95 * len(ordered))]:.0f} ms, {missing} scores lost"
    )


class Faulty(http.server.BaseHTTPRequestHandler):
    """Passes on to a good server, but spoils some of the answers."""

    target = 0
    fault = ""
    count = 0

    def do_GET(self) -> None:
        self.forward("GET")

    def do_POST(self) -> None:
        cls = type(self)
        cls.count += 1
        if cls.count % 3 == 0:
            self.forward("POST")
        elif cls.fault == "status 500":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(500)
            self.end_headers()
        elif cls.fault == "slow":
            time.sleep(1.0)
        elif cls.fault == "half a response":
            self.forward("POST", keep=0.5)
        else:
            self.close_connection = True  # refused without a word

    def forward(self, method: str, keep: float = 1.0) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=30)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        connection.request(method, self.path, body or None, dict(self.headers))
        response = connection.getresponse()
        data = response.read()
        self.send_response(response.status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: int(keep * len(data))])
        connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def faults(fault: str) -> None:
    images = pictures(48, 32)
    port = free_port()
    Faulty.target, Faulty.fault, Faulty.count = port, fault, 0
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    with serving(port):
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        reward = RemoteReward(url, batch_size=4, timeout=0.5 if fault == "slow" else 30.0)
        started = time.perf_counter()
        scores = reward.score(images, ["a prompt"] * len(images))
        seconds = time.perf_counter() - started
    proxy.shutdown()
    print(
        f"fault: {fault}, 2 of 3 requests: {lost(scores, images)} of {len(images)} scores lost, "
        f"{Faulty.count} requests for {len(images) // 4} batches, {seconds:.1f} s"
    )


def death_and_return() -> None:
    images, port = pictures(64, 32), free_port()
    found: list[Tensor] = []
    reward = RemoteReward(f"http://127.0.0.1:{port}", batch_size=4)
    with serving(port, seconds=0.1) as child:
        _ = reward.info
        work = threading.Thread(
            target=lambda: found.append(reward.score(images, ["a prompt"] * len(images)))
        )
        started = time.perf_counter()
        work.start()
        time.sleep(0.4)
        child.kill()
        child.wait()
    died = time.perf_counter() - started
    time.sleep(1.0)
    with serving(port):
        work.join()
    seconds = time.perf_counter() - started
    print(
        f"fault: killed after {died:.1f} s and started again: {lost(found[0], images)} of "
        f"{len(images)} scores lost, {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    requests = parser.parse_args().requests
    print(json.dumps({"torch": torch.__version__, "python": sys.version.split()[0]}))
    load(size=32, clients=8, requests=requests, images_per_request=1)
    load(size=32, clients=8, requests=requests // 4, images_per_request=16)
    load(size=512, clients=2, requests=requests // 10, images_per_request=4)
    for fault in ("status 500", "refused", "half a response", "slow"):
        faults(fault)
    death_and_return()


if __name__ == "__main__":
    main()
