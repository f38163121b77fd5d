import pytest

from calibri.cli.tally import Tally, clock_time


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def tally_at_pace(seconds_per_image, **kwargs):
    clock = Clock()
    tally = Tally(clock=clock, **kwargs)

    def unit(images, new=True):
        clock.now += images * seconds_per_image if new else 0.001
        tally.unit(images, new)

    return tally, unit, clock


@pytest.mark.parametrize("pace", [0.01, 3.0])
def test_time_left_is_exact_at_a_constant_pace(pace):
    tally, unit, _ = tally_at_pace(pace)
    tally.phase("search", 100)
    assert tally.seconds_left() is None
    for done in range(10, 101, 10):
        unit(10)
        assert tally.seconds_left() == pytest.approx((100 - done) * pace)


def test_replayed_units_shorten_the_rest_and_leave_the_pace_alone():
    tally, unit, _ = tally_at_pace(2.0)
    tally.phase("search", 100)
    for _ in range(5):
        unit(10, new=False)
    assert tally.seconds_left() is None
    unit(10)
    assert tally.seconds_left() == pytest.approx(40 * 2.0)
    unit(10, new=False)
    assert tally.seconds_left() == pytest.approx(30 * 2.0)


def test_a_slow_start_before_the_first_phase_is_not_counted():
    tally, unit, clock = tally_at_pace(1.0)
    clock.now += 60
    tally.phase("search", 4)
    unit(1)
    assert tally.seconds_left() == pytest.approx(3.0)


def test_time_left_spans_the_phases_to_come_at_their_cost():
    tally, unit, _ = tally_at_pace(1.0, upcoming={"evaluation": 10}, cost={"evaluation": 2.0})
    tally.phase("search", 20)
    unit(5)
    assert tally.seconds_left() == pytest.approx(15 + 10 * 2.0)


def test_a_search_that_ends_early_leaves_no_time_behind():
    tally, unit, _ = tally_at_pace(1.0)
    tally.phase("search", 100)
    unit(10)
    tally.phase("evaluation", 10)
    assert tally.fraction("search") == 1.0
    assert tally.seconds_left() == pytest.approx(10.0)


def test_time_left_counts_down_between_units_and_never_below_zero():
    tally, unit, clock = tally_at_pace(1.0)
    tally.phase("search", 20)
    unit(10)
    clock.now += 4
    assert tally.seconds_left() == pytest.approx(6.0)
    clock.now += 100
    assert tally.seconds_left() == 0.0


def test_more_units_than_planned_stay_at_the_whole():
    tally, unit, _ = tally_at_pace(1.0)
    tally.phase("search", 10)
    unit(15)
    assert (tally.fraction("search"), tally.seconds_left()) == (1.0, 0.0)


def test_phases_to_come_are_listed_after_those_that_began():
    tally, _, _ = tally_at_pace(1.0, upcoming={"evaluation": 10})
    tally.phase("search", 1)
    assert tally.phases == ["search", "evaluation"]
    assert tally.fraction("evaluation") == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-:--"),
        (0, "0:00"),
        (59.6, "1:00"),
        (65, "1:05"),
        (3599.7, "1:00:00"),
        (7265, "2:01:05"),
    ],
)
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text
