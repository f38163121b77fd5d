"""What a bench does with units that do not fit into memory."""

import numpy as np
import pytest

from calibri.errors import RunError
from calibri.scoring.backends.local import Local
from calibri.scoring.evaluator import sample_images
from calibri.scoring.units import make_unit
from tests.fakes import LittleMemory, bench_of, brightness
from tests.scoring.sample_units import NOISES, at


def test_a_unit_that_does_not_fit_is_halved_and_the_size_remembered(candidates, pipe):
    rows = [(c, noise) for c in range(4) for noise in NOISES[:2]]
    units = [(i, make_unit(candidates, rows, ("m",), at(2))) for i in range(2)]
    bench = bench_of(pipe, {"m": brightness}, sampling={"batch_size": 8})
    expected = dict(Local(bench).run(units))
    bench.sampler = LittleMemory(bench.sampler, 3)
    found = dict(Local(bench).run(units))
    assert bench.sampler.sizes == [2] * 8
    assert [result["batch_size"] for result in found.values()] == [2, 2]
    assert not any("batch_size" in result for result in expected.values())
    for index in range(2):
        one, other = (result[index]["scores"]["m"] for result in (found, expected))
        np.testing.assert_allclose(one, other, rtol=0, atol=0.02)


def test_an_image_that_does_not_fit_ends_the_run_in_words(candidates, pipe):
    bench = bench_of(pipe, {"m": brightness})
    bench.sampler = LittleMemory(bench.sampler, 0)
    unit = make_unit(candidates, [(0, NOISES[0]), (1, NOISES[0])], ("m",), at(2))
    with pytest.raises(RunError, match="One image alone"):
        dict(Local(bench).run([(0, unit)]))


def test_images_to_look_at_that_do_not_fit_are_sampled_in_smaller_batches(candidates, pipe):
    bench = bench_of(pipe)
    expected = sample_images(Local(bench), candidates[0], NOISES, at(2), 3)
    bench.sampler = LittleMemory(bench.sampler, 1)
    found = sample_images(Local(bench), candidates[0], NOISES, at(2), 3)
    assert bench.sampler.sizes == [1] * 3
    np.testing.assert_allclose(found, expected, atol=1)
