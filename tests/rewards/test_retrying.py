import pytest

from calibri.rewards.retrying import Pauses, asked_pause, may_pass


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
