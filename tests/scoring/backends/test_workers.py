"""Units shared among workers that come, go, die and hang: each gets one result, the right one."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibri.errors import RewardError, RunError
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.workers import Workers
from tests.fakes import Elsewhere, Idle


class Numbered:
    """A unit whose result is known from its number."""

    rows = (1,)

    def __init__(self, number):
        self.number = number

    @property
    def result(self):
        return {"scores": {"m": [float(self.number)]}}


class Here(Idle):
    def run(self, units, ahead=()):
        for index, unit in units:
            time.sleep(0.001)
            yield index, unit.result


class Mortal(Elsewhere):
    """Dies at some of its units, through no fault of theirs, and may never come back."""

    def __init__(self, seed, lives, slow):
        self.random = random.Random(seed)
        self.lives, self.slow = lives, slow

    def open(self):
        if self.lives == 0:
            raise WorkerLost("gone", blameless=True)
        self.lives -= 1

    def compute(self, unit):
        time.sleep(self.random.random() * self.slow)
        if self.random.random() < 0.3:
            raise WorkerLost("killed", blameless=True)
        return unit.result


def numbered(count):
    return [(i, Numbered(i)) for i in range(count)]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 6), st.sampled_from([0.0, 0.004]))),
    st.lists(st.integers(0, 30), min_size=1, max_size=3),
)
def test_every_unit_of_every_call_has_its_result_once(team, calls):
    pool = Workers(Here(), [Mortal(*member) for member in team], 1)
    for count in calls:
        units = numbered(count)
        found = list(pool.run(units))
        assert sorted(found, key=lambda item: item[0]) == [(i, unit.result) for i, unit in units]
    pool.close()


def test_a_worker_that_comes_later_gets_units_at_once_and_one_that_goes_is_missed_by_none():
    class Waiting(Elsewhere):
        def __init__(self, gate):
            self.gate = gate

        def open(self):
            self.gate.wait()

        def compute(self, unit):
            return unit.result

    gate = threading.Event()
    pool = Workers(None, [Waiting(gate)], 1)
    threading.Timer(0.1, lambda: pool.add(Mortal(0, 1, 0.0))).start()
    threading.Timer(0.3, gate.set).start()
    assert dict(pool.run(numbered(50))) == {i: unit.result for i, unit in numbered(50)}
    pool.close()


class Timed(Elsewhere):
    """Needs so many seconds for a unit, and for one unit perhaps others."""

    def __init__(self, seconds, **slow):
        self.seconds, self.slow, self.asked = seconds, slow, []

    def compute(self, unit):
        self.asked.append(unit.number)
        time.sleep(self.slow.get(f"unit_{unit.number}", self.seconds))
        return unit.result


def test_a_unit_that_hangs_at_the_end_is_computed_again_by_an_idle_worker():
    class Stuck(Timed):
        def compute(self, unit):
            if unit.number >= 3:
                time.sleep(30)
            return super().compute(unit)

    pool = Workers(None, [Stuck(0.02), Timed(0.02)], 1)
    started = time.monotonic()
    assert len(dict(pool.run(numbered(12)))) == 12
    assert time.monotonic() - started < 5
    # The one that hangs is in nobody's way afterwards.
    assert len(dict(pool.run(numbered(5)))) == 5
    pool.close()


def test_idle_workers_copy_what_they_end_sooner_and_nothing_else():
    slow, fast = Timed(1.0), Timed(0.1)
    pool = Workers(None, [slow, fast], 1)
    assert len(dict(pool.run(numbered(12)))) == 12
    # While the slow one has its second unit, the fast one ends all others and then that one too.
    repeated = set(slow.asked) & set(fast.asked)
    assert len(repeated) == 1
    pool.close()
    alike = [Timed(0.1), Timed(0.1)]
    pool = Workers(None, alike, 1)
    assert len(dict(pool.run(numbered(5)))) == 5
    assert sum(len(worker.asked) for worker in alike) == 5
    pool.close()


def test_a_result_that_comes_after_its_call_is_no_result_of_the_next():
    class Late(Timed):
        def compute(self, unit):
            return super().compute(unit) | {"by": "late"}

    late = Late(0.02, unit_7=0.5)
    pool = Workers(None, [late, Timed(0.02)], 1)
    assert len(dict(pool.run(numbered(8)))) == 8
    again = dict(pool.run([(i, Numbered(i + 100)) for i in range(60)]))
    assert {i: result["scores"]["m"] for i, result in again.items()} == {
        i: [i + 100.0] for i in range(60)
    }
    pool.close()


def test_a_unit_of_which_three_workers_die_ends_the_call_and_no_other():
    class Fragile(Elsewhere):
        def compute(self, unit):
            if unit.number == 3:
                raise WorkerLost("the reason")
            return unit.result

    pool = Workers(None, [Fragile(), Fragile()], 1)
    with pytest.raises(RunError, match="died 3 times on the same 1 images.*the reason"):
        dict(pool.run(numbered(6)))
    assert dict(pool.run(numbered(3))) == {i: unit.result for i, unit in numbered(3)}
    pool.close()


def test_a_worker_that_can_never_be_opened_ends_this_call_and_the_next():
    class Refusing(Elsewhere):
        def open(self):
            raise RewardError("no weights")

    pool = Workers(Here(), [Refusing()], 1)
    for _ in range(2):
        with pytest.raises(RewardError, match="no weights"):
            dict(pool.run(numbered(200)))
    pool.close()


def test_what_threads_have_to_say_is_told_in_the_thread_of_the_run():
    heard = []
    pool = Workers(Here(), [], 1, lambda text: heard.append((text, threading.current_thread())))
    threading.Thread(target=pool.board.say, args=("a node left",)).start()
    dict(pool.run(numbered(3)))
    assert heard == [("a node left", threading.current_thread())]
    pool.close()


def test_results_say_who_computed_them_and_how_many_were_lost_over_them():
    class Named(Timed):
        def __init__(self, name, fails=0):
            super().__init__(0.01)
            self.name, self.fails = name, fails

        def compute(self, unit):
            if self.fails:
                self.fails -= 1
                raise WorkerLost("killed", blameless=True)
            return super().compute(unit)

    pool = Workers(None, [Named("a", fails=2)], 1)
    ((_, lost),) = pool.run(numbered(1))
    assert (lost["worker"], lost["attempts"]) == ("a", 3)
    assert 0.01 <= lost["busy"] < 5
    ((_, result),) = pool.run(numbered(1))
    assert "attempts" not in result
    pool.close()
    pool = Workers(Here(), [Named("b"), Named("c")], 1, name="here")
    found = dict(pool.run(numbered(60)))
    assert {result["worker"] for result in found.values()} <= {"here", "b", "c"}
    assert "here" in {result["worker"] for result in found.values()}
    assert all(found[i]["scores"] == unit.result["scores"] for i, unit in numbered(60))
    pool.close()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 6), st.sampled_from([0.0, 0.004]))),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 20)), min_size=1, max_size=5),
)
def test_every_unit_has_its_result_once_whatever_is_ahead_of_it(team, calls):
    pool = Workers(Here(), [Mortal(*member) for member in team], 1)
    units, found, asked = dict(numbered(80)), {}, 0
    for count, horizon in calls:
        due = [i for i in range(asked, asked + count) if i not in found]
        asked += count
        spare = [i for i in range(asked, min(80, asked + horizon)) if i not in found]
        for index, result in pool.run([(i, units[i]) for i in due], [(i, units[i]) for i in spare]):
            assert index not in found
            found[index] = result
        assert found.keys() >= set(range(asked))
    assert found == {i: units[i].result for i in found}
    pool.close()
