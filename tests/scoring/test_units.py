"""Units: what they are called by, and how rows are cut into them."""

import json

import pytest

from calibri.prompts.files import make_prompts
from calibri.sampling.sampler import Noise
from calibri.scoring.units import Unit, cut, make_unit
from tests.scoring.sample_units import CHEAPER, NOISES, at, units_of


def test_a_unit_is_read_back_with_every_bit(candidates):
    cheap = at(3, **dict(zip(CHEAPER, (16, 24, 8, 2), strict=True)))
    units = [*units_of(candidates), (0, make_unit(candidates, [(0, NOISES[0])], ("a",), cheap))]
    for _, unit in units:
        again = Unit.from_json(json.loads(json.dumps(unit.to_json())))
        assert again == unit
        assert again.digest == unit.digest


def test_the_digest_depends_on_everything_but_the_order_of_measures(candidates):
    rows = [(0, NOISES[0]), (1, NOISES[1])]
    unit = make_unit(candidates, rows, ("a", "b"), at(2))
    others = [
        make_unit(candidates[1:], rows, ("a", "b"), at(2)),
        make_unit(candidates, rows[:1], ("a", "b"), at(2)),
        make_unit(candidates, [(0, NOISES[0]), (1, NOISES[2])], ("a", "b"), at(2)),
        make_unit(candidates, rows, ("a",), at(2)),
        make_unit(candidates, rows, ("a", "b"), at(3)),
        *[make_unit(candidates, rows, ("a", "b"), at(2, **{name: 2})) for name in CHEAPER],
    ]
    assert make_unit(candidates, rows, ("b", "a"), at(2)).digest == unit.digest
    assert unit.digest not in {other.digest for other in others}


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_units_keep_rows_in_order_and_prompts_whole(size, count):
    prompts = make_prompts(f"prompt {i}" for i in range(4))
    rows = [(c, Noise(p, s)) for c in range(3) for p in prompts for s in range(count)]
    units = cut(rows, size)
    assert [row for unit in units for row in unit] == rows
    assert all(1 <= len(unit) <= size for unit in units)
    if count <= size:
        for unit in units:
            groups = [(c, noise.prompt.id) for c, noise in unit]
            assert all(groups.count(group) == count for group in groups)
