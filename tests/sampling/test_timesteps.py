"""Where on the trajectory the transformers of real pipelines are called."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from calibri.errors import UnsupportedModelError
from calibri.pipelines.networks import Network, networks_of
from calibri.pipelines.trajectory import knows_timesteps, trajectory_of
from calibri.sampling.scales.scaler import Scaler
from tests.pipelines.zoo import QUIET, ZOO
from tests.sampling.pipelines import CASES, PipelineCase
from tests.sampling.two_transformers import ideogram_4, sample_ideogram, sample_wan, wan_2_2

STEPS = 4
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
EDM = [case for case in CASES if case.scheduler is diffusers.EDMEulerScheduler]
KNOWN = [case for case in CASES if case not in EDM]

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
every_known = pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.id)


def watch(pipe: Any, positions: list[float]) -> None:
    """Collect the position of every forward of every transformer."""
    for network in networks_of(pipe):

        def before(module: Any, args: Any, kwargs: Any, network: Network = network) -> None:
            positions.extend(network.trajectory.position(args, kwargs).tolist())

        network.transformer.register_forward_pre_hook(before, with_kwargs=True)


def sample(case: PipelineCase, pipe: Any, prompts: int = 2, guidance: float = 3.0) -> Tensor:
    latents: Tensor = pipe(
        prompt=["a red circle", "a blue square"][:prompts],
        negative_prompt=["ugly"] * prompts,
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        return_dict=False,
        **{case.guidance: guidance},
        **case.call,
    )[0]
    return latents


def share_of_noise(case: PipelineCase, scheduler: Any) -> list[float]:
    """The oracle: how much noise there is at every step, by what the scheduler mixes."""
    if hasattr(scheduler, "alphas_cumprod"):
        # The place of a step among the levels of noise that the model was trained with.
        levels = scheduler.alphas_cumprod
        at = [int((levels > levels[int(t)]).sum()) for t in scheduler.timesteps]
        return [place / (len(levels) - 1) for place in at]
    sigmas = scheduler.sigmas[:STEPS].double()
    if scheduler.config.invert_sigmas:
        sigmas = 1 - sigmas
    if case.name.startswith("Cosmos2"):
        # x + sigma n, of which the noise is sigma / (1 + sigma).
        sigmas = sigmas / (1 + sigmas)
    shares: list[float] = sigmas.tolist()
    return shares


def run(case: PipelineCase) -> tuple[list[float], list[float]]:
    """Positions at every step, and what they should be."""
    pipe = case.build()
    positions: list[float] = []
    watch(pipe, positions)
    sample(case, pipe)
    calls = len(positions) // STEPS
    assert calls == len(case.rows)
    return positions, [s for s in share_of_noise(case, pipe.scheduler) for _ in range(calls)]


@every_known
def test_the_position_is_the_share_of_noise(case):
    positions, expected = run(case)
    # Some pipelines round the timestep to the dtype of the model, some to a whole number.
    assert positions == pytest.approx(expected, abs=2e-3)
    assert positions == sorted(positions, reverse=True)
    # Of four steps, DDIM's first is at three quarters of the noise.
    assert 0.74 < positions[0] <= 1.0
    assert 0.0 <= positions[-1] < positions[0]


def test_a_scheduler_that_counts_from_noise_to_image_is_read_backwards():
    case = next(case for case in CASES if case.name == "MochiPipeline")
    positions, expected = run(replace(case, scheduler=partial(FLOW, invert_sigmas=True)))
    assert positions == pytest.approx(expected, abs=1e-5)
    assert positions[0] > 0.9
    # Published pipelines of Mochi have such a scheduler, so the transformer alone is taken as one.
    model = case.build().transformer
    trajectory = trajectory_of(model)
    assert (trajectory.image, trajectory.noise) == (1000.0, 0.0)


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "WanPipeline", "Krea2Pipeline"])
def test_the_number_of_timesteps_is_the_schedulers(name):
    case = next(case for case in CASES if case.name == name)
    dynamic = dict(use_dynamic_shifting=True) if name == "Krea2Pipeline" else {}
    scheduler = partial(FLOW, num_train_timesteps=250, **dynamic)
    positions, expected = run(replace(case, scheduler=scheduler))
    assert positions == pytest.approx(expected, abs=1e-5)


def test_sana_multiplies_the_timestep_by_a_number_of_its_configuration():
    case = next(case for case in CASES if case.name == "SanaPipeline")
    positions, expected = run(replace(case, config={"timestep_scale": 0.001}))
    assert positions == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("make", "sampled"), [(wan_2_2, sample_wan), (ideogram_4, sample_ideogram)]
)
def test_two_transformers_share_one_trajectory(make, sampled):
    pipe, positions = make(), []
    watch(pipe, positions)
    sampled(pipe)
    expected = [s for s in pipe.scheduler.sigmas[:3].tolist() for _ in range(2)]
    assert positions == pytest.approx(expected, abs=1e-5)


@every_known
def test_scales_between_knots_are_those_of_the_share_of_noise(case):
    pipe, unguided = case.build(), 0.0 if case.offset else 1.0
    scaler = Scaler(networks_of(pipe))
    size = (1, 1, 3, len(scaler.sites) + 1)
    scales = 1 + 0.3 * torch.randn(size, generator=torch.Generator().manual_seed(1))
    scaler.set(scales)
    ours = sample(case, pipe, 1, unguided)
    scaler.remove()
    steps = iter(share_of_noise(case, pipe.scheduler))

    def by_hand(module: Any, args: Any) -> None:
        place = 2 * next(steps)
        low = min(int(place), 1)
        scaler.set(scales[:, :, low] * (low + 1 - place) + scales[:, :, low + 1] * (place - low))

    pipe.transformer.register_forward_pre_hook(by_hand)
    scaler = Scaler(networks_of(pipe))
    expected = sample(case, pipe, 1, unguided)
    torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2 * float(expected.std()))


def test_the_noisiest_token_tells_how_far_sampling_is():
    model = next(s for s in ZOO if s.model_class == "LTXVideoTransformer3DModel").model()
    given = torch.tensor([[0.0, 0.0, 700.0, 700.0]])
    position = trajectory_of(model).position((), {"timestep": given})
    assert position.tolist() == pytest.approx([0.7])
    reversed_ = next(s for s in ZOO if s.model_class == "Lumina2Transformer2DModel").model()
    position = trajectory_of(reversed_).position((), {"timestep": torch.tensor([1.0, 0.3])})
    assert position.tolist() == pytest.approx([0.7])


@pytest.mark.parametrize("case", EDM, ids=lambda case: case.id)
def test_timesteps_that_do_not_measure_noise_are_refused_in_words(case):
    pipe = case.build()
    scaler = Scaler(networks_of(pipe))
    with pytest.raises(UnsupportedModelError, match="EDMEulerScheduler are no measure"):
        scaler.set(torch.ones(1, 1, 2, len(scaler.sites) + 1))
    assert not knows_timesteps(pipe.transformer, pipe.scheduler)


@pytest.mark.parametrize(
    ("model_class", "reason"),
    [
        ("CosmosTransformer3DModel", "depend on the pipeline"),
        ("StableAudioDiTModel", "arc tangent"),
        ("MiniMaxH3Transformer3DModel", "of pictures or of sound"),
    ],
)
def test_a_transformer_alone_is_refused_where_it_does_not_tell(model_class, reason):
    model = next(s for s in ZOO if s.model_class == model_class).model()
    with pytest.raises(UnsupportedModelError, match=reason):
        trajectory_of(model)
