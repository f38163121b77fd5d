"""What is cheaper on which pipeline, what it costs, and what of a configuration is refused."""

from types import SimpleNamespace

import numpy as np
import pytest

from calibri.config import RunConfig, SamplingConfig, load_config
from calibri.errors import CalibriError, ConfigError, UnsupportedModelError
from calibri.prompts.files import make_prompts
from calibri.results import FULL, Fidelity
from calibri.runs.probe.cheaper import (
    cheaper_fidelities,
    check_fidelity,
    full_size,
    relative_cost,
    size_notes,
    text_tokens,
    try_out,
)
from calibri.runs.session import Session
from calibri.sampling.sampler import Sampler
from tests.sampling.pipelines import CASES
from tests.tiny import dotted

PROMPTS = make_prompts(["a circle", "a red circle and a blue square"])


def shipped(**values):
    base = {"device": "cpu", "sampling.workers": 1, "space.granularity": "block"}
    return Session(load_config(values=base | dotted(values)))


@pytest.fixture(scope="module")
def session():
    return shipped()


def around(name, **sampling):
    """As much of an session as is needed, around a tiny pipeline of a real class."""
    case = next(case for case in CASES if case.id == name)
    pipe = case.build()
    config = SamplingConfig(**sampling)
    return SimpleNamespace(
        bench=SimpleNamespace(pipe=pipe, sampler=Sampler(pipe, config)),
        config=RunConfig(sampling=config),
        prompts=SimpleNamespace(train=PROMPTS),
    )


def steps(count):
    return Fidelity(num_inference_steps=count)


def test_the_shipped_pipeline_has_fewer_steps_and_a_cache(session):
    """Its images have 24 pixels and its text encoder one length."""
    assert cheaper_fidelities(session) == [
        [steps(6), steps(4)],
        [Fidelity(cache_interval=2), Fidelity(cache_interval=3)],
    ]


def test_what_is_configured_is_the_only_one(session):
    ours = shipped(search__fidelity={"num_inference_steps": 7, "cache_interval": 2})
    assert cheaper_fidelities(ours) == [[Fidelity(num_inference_steps=7, cache_interval=2)]]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, []), (2, [[steps(1)]]), (3, [[steps(2)], [Fidelity(cache_interval=2)]])],
)
def test_few_steps_have_few_cheaper_ways(count, expected):
    ours = shipped(sampling__num_inference_steps=count)
    assert cheaper_fidelities(ours) == expected


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
def test_flux_has_every_kind_and_their_costs():
    """The figures of FLOPs counted at the geometry of FLUX.1-dev: 0.83, 0.74 and 0.58."""
    flux = around("Flux", num_inference_steps=15, height=512, width=512)
    assert cheaper_fidelities(flux) == [
        [steps(11), steps(8)],
        [Fidelity(cache_interval=2), Fidelity(cache_interval=3)],
        [Fidelity(height=384, width=384), Fidelity(height=256, width=256)],
        [Fidelity(max_sequence_length=256), Fidelity(max_sequence_length=128)],
    ]
    small, short = Fidelity(height=448, width=448), Fidelity(max_sequence_length=128)
    assert relative_cost(flux, FULL) == 1.0
    assert relative_cost(flux, small) == pytest.approx((784 + 512) / (1024 + 512))
    assert relative_cost(flux, short) == pytest.approx((1024 + 128) / (1024 + 512))
    assert relative_cost(flux, small.updated(short)) == pytest.approx((784 + 128) / (1024 + 512))
    assert relative_cost(flux, steps(8).updated(Fidelity(cache_interval=3))) == pytest.approx(0.2)


def test_a_size_is_the_pipelines_own_unless_configured_and_no_smaller_than_rewards_see():
    assert full_size(around("Flux")) == (1024, 1024)
    assert full_size(around("Flux", height=320)) == (320, 1024)
    assert full_size(around("Wan")) == (480, 832)
    wide = around("Flux", height=320, width=640)
    assert [Fidelity(height=240, width=480)] in cheaper_fidelities(wide)
    binned = around("PixArtSigma", height=1024, width=1024)
    assert not any(kind[0].height for kind in cheaper_fidelities(binned))
    tiny = around("Flux", height=288, width=288)
    assert not any(kind[0].height for kind in cheaper_fidelities(tiny))


def test_a_size_that_is_binned_changes_no_cost_and_is_said():
    """A PixArt of 256 pixels: 256 latents of 8 pixels, two by two, and 300 tokens."""
    binned, small = around("PixArtSigma", height=128, width=128), Fidelity(height=64, width=64)
    assert relative_cost(binned, small) == 1.0
    short = small.updated(Fidelity(max_sequence_length=150))
    assert relative_cost(binned, short) == pytest.approx((256 + 150) / (256 + 300))
    (note,) = size_notes(binned)
    assert "PixArtSigmaPipeline samples at the nearest of its own sizes" in note
    assert size_notes(around("PixArtSigma")) == []
    assert size_notes(around("Flux", height=128, width=128)) == []


def test_text_is_shortened_only_where_the_transformer_sees_it():
    """Qwen-Image pads prompts to the longest alone; of a video they are few beside its frames."""
    assert text_tokens(around("Flux"), FULL) == 512
    qwen = around("QwenImage")
    assert text_tokens(qwen, FULL) == 8
    assert not any(kind[0].max_sequence_length for kind in cheaper_fidelities(qwen))
    assert not any(kind[0].max_sequence_length for kind in cheaper_fidelities(around("Wan")))


@pytest.mark.parametrize(
    ("fidelity", "says"),
    [
        ({"num_inference_steps": 9}, "num_inference_steps is 9, more than the 8"),
        ({"height": 32}, "height is 32, more than the 24"),
        ({"width": 48}, "width is 48, more than the 24"),
        ({"max_sequence_length": 300}, "max_sequence_length is 300, more than the 256"),
        ({"cache_interval": 8}, "cache_interval is 8, but there are 8 steps"),
        ({"cache_interval": 3, "num_inference_steps": 3}, "there are 3 steps"),
        ({"height": 23}, "Images at height 23 cannot be sampled and scored: "),
        ({"height": 16, "width": 16}, "Images at height 16, width 16 cannot be sampled and"),
        ({"max_sequence_length": 128}, "Images at 128 text tokens cannot be sampled"),
    ],
)
def test_nonsense_is_refused_before_any_work(fidelity, says):
    with pytest.raises(ConfigError, match=says):
        check_fidelity(shipped(search__fidelity=fidelity))


def test_what_makes_sense_is_not_refused(session):
    check_fidelity(session)
    check_fidelity(shipped(search__fidelity={"num_inference_steps": 6, "cache_interval": 5}))


@pytest.mark.parametrize("name", ["max_sequence_length", "height"])
def test_arguments_that_a_pipeline_does_not_take_are_refused(name):
    class TextPipeline:
        def __call__(self, prompt):
            """Takes nothing else."""

    config = load_config(values={f"search.fidelity.{name}": 8})
    sampler = SimpleNamespace(max_sequence_length=None)
    bench = SimpleNamespace(pipe=TextPipeline(), sampler=sampler)
    with pytest.raises(ConfigError, match=f"TextPipeline takes no {name}"):
        check_fidelity(SimpleNamespace(bench=bench, config=config))


def test_a_model_that_cannot_be_cached_is_refused(monkeypatch):
    ours = shipped(search__fidelity={"cache_interval": 2})

    def forward(hidden_states):
        """Like a transformer that knows no timestep."""

    monkeypatch.setattr(ours.bench.pipe.transformer, "forward", forward)
    with pytest.raises(UnsupportedModelError, match="Leave cache_interval out"):
        check_fidelity(ours)
    plain = SimpleNamespace(config=load_config(), bench=ours.bench)
    plain.prompts = ours.prompts
    assert cheaper_fidelities(plain) == [[steps(6), steps(4)]]


def test_a_trial_samples_the_images_of_one_prompt_at_two_steps(session, monkeypatch):
    seen = []

    def sample(coefficients, noises, fidelity):
        seen.append((len(noises), fidelity))
        raise CalibriError("no")

    monkeypatch.setattr(session, "sample", sample)
    with pytest.raises(ConfigError, match="Images at height 24 cannot be sampled and scored: no"):
        try_out(session, Fidelity(height=24))
    assert seen == [(1, Fidelity(num_inference_steps=2, height=24))]
    assert np.isfinite(relative_cost(session, FULL))
