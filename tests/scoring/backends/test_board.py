"""Who gets which unit when, on a clock of the test's own: gaps are filled with what is ahead."""

import pytest

from calibri.errors import RewardError, RunError
from calibri.scoring.backends import board as module
from calibri.scoring.backends.board import Board, WorkerLost


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Numbered:
    rows = (1,)


UNITS = {number: Numbered() for number in range(10)}


def some(*numbers):
    return [(number, UNITS[number]) for number in numbers]


def result(task):
    return {"of": task.index}


def results(board, failed=None):
    return dict(board.results(failed, wait=False))


def is_idle(board, worker):
    return board._next(worker) is None


@pytest.fixture
def begun(clock):
    """After a second: 2 is in the hands of a, which needs a second, and b is free."""
    board = Board()
    board.begin(some(0, 1, 2), some(5, 6, 7))
    for task in [board.take("a"), board.take("b")]:
        clock.now = 1.0
        board.finish(task, result(task))
    assert results(board).keys() == {0, 1}
    return board, board.take("a")


def test_gaps_are_filled_in_order_while_they_last(clock, begun):
    board, last = begun
    assert last.index == 2
    first = board.take("b")
    clock.now = 1.5
    board.finish(first, result(first))
    second = board.take("b")
    assert (first.index, second.index) == (5, 6)
    clock.now = 1.9
    board.finish(second, result(second))
    assert is_idle(board, "b")  # the rest is shorter than a quarter of a unit
    assert board.is_busy
    board.finish(last, result(last))
    assert results(board) == {2: {"of": 2}, 5: {"of": 5}, 6: {"of": 6}}
    assert not board.is_busy
    assert is_idle(board, "a")  # nobody waits


def test_what_is_in_hand_when_a_call_ends_is_gone_on_with_and_not_begun_again(clock, begun):
    board, last = begun
    early = board.take("b")
    board.finish(last, result(last))
    assert results(board).keys() == {2}
    assert not board.is_busy  # though 5 is not finished
    board.begin(some(5, 6), some(7))
    assert board.take("a").index == 6
    board.finish(early, result(early))
    assert results(board) == {5: {"of": 5}}


def test_what_is_finished_in_a_pause_comes_with_the_next_call(clock, begun):
    board, last = begun
    early = board.take("b")
    board.finish(last, result(last))
    assert results(board).keys() == {2}
    board.finish(early, result(early))
    board.begin(some(5))
    assert is_idle(board, "a")
    assert results(board) == {5: {"of": 5}}
    assert not board.is_busy


def test_what_is_ahead_no_more_is_forgotten_also_under_the_index_of_another(clock, begun):
    board, last = begun
    early = board.take("b")
    board.finish(last, result(last))
    board.begin([(5, Numbered())], some(7))
    board.finish(early, result(early))
    assert results(board) == {}
    assert board.take("a").index == 5


def test_a_late_unit_is_copied_before_anything_ahead_is_begun(clock, begun):
    board, last = begun
    clock.now = last.started + 2.0
    copy = board.take("b")
    assert copy.index == last.index
    assert board.take("c").index == 5


@pytest.mark.parametrize("how", ["error", "death"])
def test_what_fails_ahead_is_begun_again_only_when_it_is_waited_for(clock, begun, how):
    def fail(task):
        if how == "error":
            board.finish(task, RewardError("no number"))
        else:
            board.put_back(task, WorkerLost("out of memory"))

    board, last = begun
    fail(board.take("b"))
    assert board.take("b").index == 6
    board.finish(last, result(last))
    failed = []
    assert results(board, failed).keys() == {2}
    board.begin(some(0), some(5, 6))
    board.take("a")
    assert is_idle(board, "b")
    board.begin(some(5))
    for _ in range(1 if how == "error" else 3):
        fail(board.take("b"))
    assert results(board, failed) == {}
    ((error,), kind) = (failed, RewardError if how == "error" else RunError)
    assert type(error) is kind


def test_a_node_that_is_lost_may_begin_ahead_again(clock, begun):
    board, last = begun
    board.put_back(board.take("b"), WorkerLost("preempted", blameless=True))
    board.finish(last, result(last))
    board.begin(some(0), some(5))
    board.take("a")
    assert board.take("b").index == 5
