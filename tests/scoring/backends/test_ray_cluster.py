"""Units computed by actors of a Ray cluster; several Ray processes of this machine are its nodes.

Skipped, and said so, where Ray is not installed.
"""

import contextlib
import os
import signal
import time

import numpy as np
import psutil
import pytest

from calibri.errors import CalibriError, ConfigError, RewardError
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.nodes import Needs
from calibri.scoring.backends.ray_calls import Calls
from calibri.scoring.backends.ray_cluster import RayCluster
from calibri.scoring.backends.ray_connection import connection
from calibri.scoring.units import make_unit
from tests.fakes import results_of
from tests.rewards.server.serving import serving
from tests.scoring.ray_nodes import Nodes
from tests.scoring.sample_units import at, configured, units_of

pytest.importorskip("ray", reason="Ray is not installed: pip install 'calibri[ray]'")
pytestmark = [pytest.mark.end_to_end]


@pytest.fixture
def nodes(monkeypatch):
    with Nodes() as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster


@pytest.fixture
def backend_of(nodes):
    """Makes back-ends, which are closed before the cluster is."""
    with contextlib.ExitStack() as stack:

        def make(said=None, ray=(), **rewards):
            config = configured("ray", **rewards)
            settings = config.sampling.ray.model_copy(update=dict(ray))
            sampling = config.sampling.model_copy(update={"ray": settings})
            config = config.model_copy(update={"sampling": sampling})
            made = RayCluster(config, 1, ([] if said is None else said).append)
            return stack.enter_context(contextlib.closing(made))

        yield make


def many(candidates, times):
    return list(enumerate(unit for _, unit in units_of(candidates) * times))


def actors(kind="UnitActor"):
    """Processes of actors that have loaded their class, by id."""
    return {
        process.pid: process
        for process in psutil.process_iter(["cmdline"])
        if any(kind in part for part in process.info["cmdline"] or [])
    }


def without_loss(backend, units, expected, after, then):
    """Run units, and do something after so many results."""
    found = []
    for index, result in backend.run(units):
        found.append((index, result))
        if len(found) == after:
            then()
    assert len(found) == len(units)
    assert results_of(found) == expected


def test_actors_give_the_scores_of_one_process(session, candidates, nodes, backend_of):
    plain = units_of(candidates)
    cached = make_unit(candidates, plain[0][1].rows, plain[0][1].measures, at(4, cache_interval=2))
    image = make_unit(candidates, plain[0][1].rows, (), at(2), "images")
    units = [*plain, (len(plain), cached), (len(plain) + 1, image)]
    alone = dict(Local(session.bench).run(units))
    nodes.add(num_cpus=2)
    backend = backend_of()
    assert results_of(backend.run(units)) == alone
    assert len(actors()) == 2


def test_killed_actors_and_lost_nodes_cost_nothing_and_new_ones_help(
    session, candidates, nodes, backend_of
):
    units = many(candidates, 6)
    alone = dict(Local(session.bench).run(units))
    first = nodes.add(num_cpus=1)
    said = []
    backend = backend_of(said)

    def kill():
        for pid in actors():
            os.kill(pid, signal.SIGKILL)

    without_loss(backend, units, alone, 5, kill)
    assert any("died" in text for text in said)
    nodes.add(num_cpus=1)
    without_loss(backend, units, alone, 3, lambda: nodes.remove(first))
    assert len(actors()) == 1
    backend.close()
    assert not actors()


def test_an_actor_that_hangs_is_replaced(session, candidates, nodes, backend_of):
    units = many(candidates, 3)
    alone = dict(Local(session.bench).run(units))
    nodes.add(num_cpus=1)
    said = []
    backend = backend_of(said)
    backend.pace.least = 3.0

    def stop():
        for pid in actors():
            os.kill(pid, signal.SIGSTOP)

    without_loss(backend, units, alone, 5, stop)
    assert any("no answer from" in text for text in said)


NEEDS_A_FILE = """
import os
from calibri.errors import RewardError
from calibri.rewards import RewardInfo

class Mine:
    info = RewardInfo("mine", "1", unit="none")

    def __init__(self):
        if os.environ.get("EMPTY_NODE"):
            raise RewardError("its weights are not in the cache of this machine")

    def score(self, images, prompts):
        return images.float().mean(dim=(1, 2, 3))
"""


def test_a_node_without_a_model_is_named_and_the_others_go_on(
    tmp_path, candidates, nodes, backend_of
):
    (tmp_path / "mine.py").write_text(NEEDS_A_FILE)
    reward = {"objective": f"{tmp_path / 'mine.py'}:Mine", "held_out": []}
    nodes.add(num_cpus=1, env={"EMPTY_NODE": "1"})
    other = nodes.add(num_cpus=1)
    said = []
    backend = backend_of(said, **reward)
    units = units_of(candidates)
    named = [
        (i, make_unit(candidates, unit.rows, (reward["objective"],), at(2))) for i, unit in units
    ]
    assert len(results_of(backend.run(named))) == len(named)
    assert sum("gets no more units" in text for text in said) == 1
    assert any("its weights are not in the cache" in text for text in said)
    # With the good one gone there is nobody left, and that is the end, in words.
    nodes.remove(other)
    with pytest.raises(CalibriError, match="Node .* not in the cache of this machine"):
        results_of(backend.run(named * 20))


NEEDS_MEMORY = """
import os
import pathlib
import signal
import time
from calibri.rewards import RewardInfo

class Mine:
    info = RewardInfo("mine", "1", unit="none")

    def score(self, images, prompts):
        if os.environ.get("SMALL_NODE"):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does
        if not pathlib.Path(__file__).with_name("hurry").exists():
            time.sleep(2)  # the other node's workers start and die meanwhile
        return images.float().mean(dim=(1, 2, 3))
"""


def test_a_node_whose_workers_are_killed_for_want_of_memory_is_named_and_left_out(
    tmp_path, session, candidates, nodes, backend_of
):
    (tmp_path / "mine.py").write_text(NEEDS_MEMORY)
    name = f"{tmp_path / 'mine.py'}:Mine"
    nodes.add(num_cpus=1, env={"SMALL_NODE": "1"})
    nodes.add(num_cpus=1)
    said = []
    backend = backend_of(said, objective=name, held_out=[])
    units = [
        (i, make_unit(candidates, unit.rows, (name,), at(2))) for i, unit in many(candidates, 40)
    ]
    found, words = [], []
    for finished in backend.run(units):
        found.append(finished)
        if words := [text for text in said if "gets no more units" in text]:
            (tmp_path / "hurry").touch()
    assert sorted(index for index, _ in found) == [index for index, _ in units]
    (words,) = words
    assert "perhaps for want of memory" in words


def test_a_reward_server_that_dies_ends_the_call_in_words_and_nothing_is_lost(
    candidates, nodes, backend_of
):
    nodes.add(num_cpus=2)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        address = server.server_address[1]
        url = f"http://127.0.0.1:{address}"
        options = {"remote": {"url": url, "attempts": 2}}
        backend = backend_of(objective="remote", held_out=[], options=options)
        rows = units_of(candidates)
        units = [(i, make_unit(candidates, unit.rows, ("remote",), at(2))) for i, unit in rows]
        found, finished = {}, backend.run(units)
        for index, result in finished:
            found[index] = result
            if len(found) == 3:
                stack.close()
                break
        with pytest.raises(RewardError, match=f"127.0.0.1:{address}"):
            found.update(finished)
    assert 3 <= len(found) < len(units)
    with serving(port=address):
        missing = [(index, unit) for index, unit in units if index not in found]
        found.update(backend.run(missing))
    assert found.keys() == dict(units).keys()
    assert all(result["scores"]["remote"] for result in found.values())


def test_another_version_on_a_node_is_refused_with_both_named(
    candidates, nodes, other_calibri, backend_of
):
    nodes.add(num_cpus=1, env={"PYTHONPATH": other_calibri})
    backend = backend_of()
    with pytest.raises(ConfigError, match=r"calibri 0.1.0 here and 0.0.9 there"):
        results_of(backend.run(units_of(candidates)))


@pytest.fixture
def other_calibri(tmp_path):
    """A folder with this package, except that it is of another version."""
    import calibri

    here = os.path.dirname(calibri.__file__)
    (tmp_path / "calibri").mkdir()
    for name in os.listdir(here):
        os.symlink(os.path.join(here, name), tmp_path / "calibri" / name)
    version = tmp_path / "calibri" / "version.py"
    text = version.read_text()
    version.unlink()
    version.write_text(text.replace("0.1.0", "0.0.9"))
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def test_a_cluster_without_room_is_told_at_once(backend_of):
    with pytest.raises(ConfigError, match="has room for a worker, which needs 0 GPUs and 1 CPUs"):
        backend_of()


def test_a_cluster_that_grows_when_asked_is_waited_for(session, candidates, nodes, backend_of):
    backend = backend_of(ray={"workers": 1})
    time.sleep(2)
    nodes.add(num_cpus=4)
    units = units_of(candidates)
    assert results_of(backend.run(units)) == dict(Local(session.bench).run(units))
    assert len(actors()) == 1


def test_rewards_apart_give_the_same_scores_and_may_die(session, candidates, nodes, backend_of):
    plain = many(candidates, 3)
    image = make_unit(candidates, plain[0][1].rows, (), at(2), "images")
    units = [*plain, (len(plain), image)]
    alone = dict(Local(session.bench).run(units))
    nodes.add(num_cpus=2)
    nodes.add(num_cpus=1)
    said = []
    backend = backend_of(said, {"reward_workers": 1})

    def kill():
        for pid in actors("RewardActor"):
            os.kill(pid, signal.SIGKILL)

    without_loss(backend, units, alone, 5, kill)
    assert len(actors("RewardActor")) == 1
    assert len(actors()) == 2
    assert any("worker for rewards was lost" in text for text in said)


def test_failing_scores_are_measured_again_where_rewards_are_apart(
    tmp_path, candidates, nodes, backend_of
):
    (tmp_path / "mine.py").write_text(FAILS_ONCE)
    name = f"{tmp_path / 'mine.py'}:Mine"
    nodes.add(num_cpus=2)
    backend = backend_of(ray={"reward_workers": 1}, objective=name, held_out=[])
    unit = make_unit(candidates, units_of(candidates)[0][1].rows, (name,), at(2))
    assert results_of(backend.run([(0, unit)])) == {0: {"scores": {name: [2.0, 1.0]}, "retried": 1}}


FAILS_ONCE = """
import torch
from calibri.rewards import RewardInfo

class Mine:
    info = RewardInfo("mine", "1", unit="none")
    calls = 0

    def score(self, images, prompts):
        self.calls += 1
        scores = torch.full((len(prompts),), float(self.calls))
        if self.calls == 1:
            scores[0] = torch.nan
        return scores
"""


def test_images_that_overflow_the_object_store_arrive_all_the_same(nodes):
    """Ray keeps on disk what does not fit: 6 times 30 MB at once, and 120 MB in one piece."""

    class Sampling:
        def sample(self, number, megabytes):
            return number, np.full((megabytes, 2**20), number, np.uint8)

    class Measuring:
        def measure(self, pixels):
            return int(pixels[0, 0]), pixels.nbytes // 2**20

    nodes.add(num_cpus=2)
    with connection() as (ray, _):
        calls, needs = Calls(ray), Needs(0, 1)
        node = next(node for node in calls.nodes() if node.cpus == 2)
        sampling, measuring = (calls.start(kind, needs, node) for kind in (Sampling, Measuring))
        sizes = [30] * 6 + [120]
        made = [
            calls.ask(sampling, "sample", i, size, timeout=60, node=node, parts=2)
            for i, size in enumerate(sizes)
        ]
        found = [calls.ask(measuring, "measure", ref, timeout=60, node=node) for _, ref in made]
        assert found == list(enumerate(sizes))
        calls.close()
