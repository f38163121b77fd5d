"""Faults of a cluster as Ray tells of them, without Ray: its calls are those of the test."""

import contextlib
import socket
import time

import pytest

from calibri.errors import RewardError, RunError
from calibri.scoring.backends import ray_cluster
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.nodes import Node
from calibri.scoring.backends.ray_actors import comparable_versions
from calibri.scoring.backends.ray_cluster import RayCluster
from tests.scoring.sample_units import configured

NODES = [Node(name, name, 0, 1) for name in ("large", "small")]


class Numbered:
    rows = (1,)
    kind = "scores"

    def __init__(self, number):
        self.number = number

    def to_json(self):
        return {"number": self.number}


class Told:
    """Answers in the place of actors; a node may let them die, or its units fail."""

    def __init__(self, head, fate=lambda node, method, *args: None):
        self.address, self.fate = head, fate
        self.killed = 0

    def head(self):
        return self.address

    def nodes(self):
        return NODES

    def start(self, kind, needs, node):
        return node.name

    def ask(self, actor, method, *args, timeout, node, parts=1):
        self.fate(node.name, method, *args)
        if method == "versions":
            return comparable_versions()
        return {"scores": {"m": [float(args[0]["number"])]}} if method == "compute" else None

    def kill(self, actor):
        self.killed += 1

    def request(self, needs):
        pass

    def close(self):
        pass


@pytest.fixture
def head():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def cluster_of(monkeypatch, head):
    monkeypatch.setattr(ray_cluster, "_LOOK", 0.01)
    address = f"127.0.0.1:{head.getsockname()[1]}"

    @contextlib.contextmanager
    def make(fate=lambda node, method, *args: None, leave=lambda: None):
        @contextlib.contextmanager
        def connection():
            yield None, "http://head:8265/#/jobs/01"
            leave()

        monkeypatch.setattr(ray_cluster, "connection", connection)
        monkeypatch.setattr(ray_cluster, "Calls", lambda ray: Told(address, fate))
        said, pages = [], []
        cluster = RayCluster(configured("ray"), 1, said.append, pages.append)
        cluster.pages = pages
        with contextlib.closing(cluster):
            yield cluster, said

    return make


def units(count):
    return [(number, Numbered(number)) for number in range(count)]


def all_there(found, count):
    return found == {number: [float(number)] for number in range(count)}


def scores(finished):
    return {index: result["scores"]["m"] for index, result in finished}


def gather(cluster, work, found):
    for index, result in cluster.run(work):
        found[index] = result["scores"]["m"]


@pytest.mark.parametrize("method", ["load", "compute"])
def test_a_node_whose_workers_die_at_once_is_named_and_left_out(cluster_of, method):
    deaths = []

    def fate(node, asked, *args):
        if node == "small" and asked == method:
            deaths.append(node)
            raise WorkerLost("a process on small died, perhaps for want of memory")
        time.sleep(0.02)

    with cluster_of(fate) as (cluster, said):
        assert all_there(scores(cluster.run(units(60))), 60)
        (words,) = [text for text in said if "gets no more units" in text]
    assert words.startswith("Node small")
    assert "before their first unit is done: a process on small died, perhaps for want" in words
    assert len(deaths) == 3


def test_a_node_whose_workers_die_now_and_then_is_kept(cluster_of):
    computed = []

    def fate(node, asked, *args):
        if asked == "compute":
            computed.append(node)
            time.sleep(0.005)
            if node == "small" and computed.count(node) % 3 == 0:
                raise WorkerLost("killed", blameless=True)

    with cluster_of(fate) as (cluster, said):
        assert all_there(scores(cluster.run(units(80))), 80)
        assert not [text for text in said if "gets no more units" in text]
    assert computed.count("small") > 9


def test_a_unit_that_fails_for_its_reward_ends_the_call_and_the_rest_can_be_had(cluster_of):
    down = []

    def fate(node, asked, *args):
        if asked == "compute":
            time.sleep(0.002)
            if down and args[0]["number"] >= 10:
                raise RewardError("no answer from the reward server")

    with cluster_of(fate) as (cluster, _):
        found = scores(cluster.run(units(8)))
        down.append(True)
        with pytest.raises(RewardError, match="no answer from the reward server"):
            gather(cluster, units(40)[8:], found)
        down.clear()
        rest = [(index, unit) for index, unit in units(40) if index not in found]
        found |= scores(cluster.run(rest))
        assert all_there(found, 40)


def test_without_its_head_a_run_ends_in_words_though_ray_hangs(cluster_of, head, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_HEADLESS", 0.3)
    monkeypatch.setattr(ray_cluster, "_FAREWELL", 0.2)

    def fate(node, asked, *args):
        if asked == "compute" and args[0]["number"] > 5:
            head.close()
            time.sleep(20)

    started = time.monotonic()
    found = {}
    with (
        cluster_of(fate, leave=lambda: time.sleep(20)) as (cluster, _),
        pytest.raises(RunError, match="head of the Ray cluster at 127.0.0.1.* resume the run"),
    ):
        gather(cluster, units(20), found)
    assert found.keys() == set(range(6))
    assert time.monotonic() - started < 15


def test_a_head_that_does_not_answer_for_a_moment_is_waited_for(cluster_of, monkeypatch):
    failures = iter([OSError("busy")] * 5)

    def reach(address):
        for error in failures:
            raise error

    monkeypatch.setattr(ray_cluster, "reach", reach)
    with cluster_of(lambda *args: time.sleep(0.02)) as (cluster, _):
        assert all_there(scores(cluster.run(units(20))), 20)
    assert next(failures, None) is None


def test_the_page_of_the_cluster_is_told(cluster_of):
    with cluster_of() as (cluster, _):
        assert cluster.pages == ["http://head:8265/#/jobs/01"]
