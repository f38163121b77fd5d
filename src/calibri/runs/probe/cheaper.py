"""Cheaper ways of sampling that a pipeline has: which there are, what they cost, whether they work.

Costs are counted, never timed: what is chosen by them must not depend on the number of workers, nor
on whether a run was interrupted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from calibri.errors import CalibriError, ConfigError, RunError
from calibri.memory import is_out_of_memory
from calibri.pipelines import networks_of
from calibri.planning import image_tokens
from calibri.planning import relative_cost as cost_in_full_images
from calibri.prompts import Prompt
from calibri.results import FULL, Fidelity
from calibri.runs.session import Session
from calibri.sampling import bins_sizes, call_arguments

# Fewer steps and smaller sides as shares of the full ones, the cheapest last.
_SHARES = (0.75, 0.5)
_INTERVALS = (2, 3)
# Rewards see images at 224 pixels or more, and texts need some room.
_LEAST_SIDE, _LEAST_LENGTH = 224, 128
# How pipelines and networks refuse what they were not made for.
_REFUSALS = (RuntimeError, ValueError, IndexError, TypeError)
# Latents of 8 pixels, packed two by two into a token, where a pipeline does not say.
_LATENT = 8


def cheaper_fidelities(session: Session) -> list[list[Fidelity]]:
    """List what may be tried in place of the full fidelity.

    Args:
        session: of the run. A fidelity that its configuration names is the only one.

    Returns:
        One list for each way of being cheaper that this pipeline has, the cheapest last: fewer
        steps, a cache, smaller images, fewer tokens of a prompt.
    """
    configured = session.config.search.fidelity
    if configured != FULL:
        return [[configured]]
    found = [_steps(session), _caches(session), _sizes(session), _lengths(session)]
    return [fidelities for fidelities in found if fidelities]


def _steps(session: Session) -> list[Fidelity]:
    full = session.config.sampling.num_inference_steps
    shares = {max(1, round(share * full)) for share in _SHARES} - {full}
    return [Fidelity(num_inference_steps=steps) for steps in sorted(shares, reverse=True)]


def _caches(session: Session) -> list[Fidelity]:
    try:
        session.bench.sampler.check_cache()
    except CalibriError:
        return []
    steps = fewest = session.config.sampling.num_inference_steps
    found = []
    for interval in _INTERVALS:
        fidelity = Fidelity(cache_interval=interval)
        if 1 < fidelity.evaluations(steps) < fewest:
            found.append(fidelity)
            fewest = fidelity.evaluations(steps)
    return found


def _sizes(session: Session) -> list[Fidelity]:
    size = full_size(session)
    # Pipelines that bin sizes sample at one of their own, and only shrink what comes of it.
    if size is None or bins_sizes(session.bench.pipe):
        return []
    multiple = 2 * _latent(session)
    sides = [[int(share * side) // multiple * multiple for side in size] for share in _SHARES]
    return [
        Fidelity(height=height, width=width)
        for height, width in sides
        if min(height, width) >= _LEAST_SIDE
    ]


def _lengths(session: Session) -> list[Fidelity]:
    """Halve the tokens of a prompt as long as the transformer then sees fewer of them."""
    length, found = session.bench.sampler.max_sequence_length, []
    before = text_tokens(session, FULL) if length is not None else None
    while before is not None and length is not None and length // 2 >= _LEAST_LENGTH:
        length //= 2
        fidelity = Fidelity(max_sequence_length=length)
        after = text_tokens(session, fidelity)
        if after is None or after >= before:
            break
        found.append(fidelity)
        before = after
    return found


def size_notes(session: Session) -> list[str]:
    """Say where another size of the images is not another size of the latents."""
    sampling, fidelity = session.config.sampling, session.config.search.fidelity
    asked = (sampling.height, sampling.width, fidelity.height, fidelity.width)
    if not any(asked) or not bins_sizes(session.bench.pipe):
        return []
    return [
        f"{type(session.bench.pipe).__name__} samples at the nearest of its own sizes and resizes "
        "the images to the height and width that were asked for, so that smaller ones cost the "
        "same. Leave them out to score what it samples."
    ]


def full_size(session: Session, *, configured: bool = True) -> tuple[int, int] | None:
    """Height and width of an image in pixels; None where the pipeline does not tell.

    What is not configured is a default of the pipeline's call, or of its own.

    Args:
        session: of a run.
        configured: False for what the pipeline would sample by itself.
    """
    accepted = call_arguments(session.bench.pipe)
    if not {"height", "width"} <= accepted.keys():
        return None
    sample = getattr(session.bench.pipe, "default_sample_size", None)
    if sample is None and bins_sizes(session.bench.pipe):
        config: Any = networks_of(session.bench.pipe)[0].transformer.config
        sample = config.sample_size
    own = sample * _latent(session) if isinstance(sample, int) else None
    sizes = [
        (configured and getattr(session.config.sampling, name)) or accepted[name].default or own
        for name in ("height", "width")
    ]
    height, width = sizes
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _latent(session: Session) -> int:
    """Pixels that one latent is wide."""
    names = ("vae_scale_factor", "vae_scale_factor_spatial")
    return next(
        (int(getattr(session.bench.pipe, n)) for n in names if hasattr(session.bench.pipe, n)),
        _LATENT,
    )


def text_tokens(session: Session, fidelity: Fidelity) -> int | None:
    """Tokens that the transformer sees of the longest training prompt; None where not known."""
    try:
        return session.bench.sampler.text_tokens(_longest(session), fidelity.max_sequence_length)
    except _REFUSALS as error:  # not a number that it can do
        if is_out_of_memory(error):
            raise
        return None


def _longest(session: Session) -> Prompt:
    return max(session.prompts.train, key=lambda prompt: len(prompt.text))


def relative_cost(session: Session, fidelity: Fidelity) -> float:
    """Count what an image of a session costs in units of one at full fidelity."""
    steps = session.config.sampling.num_inference_steps
    return cost_in_full_images(fidelity, steps, partial(_tokens, session))


def _tokens(session: Session, fidelity: Fidelity) -> float | None:
    # Another size is the same latents of a pipeline that bins sizes.
    binned = bins_sizes(session.bench.pipe)
    size = full_size(session, configured=not binned)
    if size is None:
        return None
    height, width = size
    if not binned:
        height, width = fidelity.height or height, fidelity.width or width
    return image_tokens(height, width, _latent(session)) + (text_tokens(session, fidelity) or 0)


def check_fidelity(session: Session) -> None:
    """Refuse a configured fidelity that is not cheaper or does not work, before any work.

    Raises:
        ConfigError: it is larger than the full one, the pipeline does not take it, or one image
            cannot be sampled and scored with it.
    """
    fidelity = session.config.search.fidelity
    if fidelity == FULL:
        return
    _check_smaller(session, fidelity)
    if fidelity.cache_interval is not None:
        session.bench.sampler.check_cache()
    try_out(session, fidelity)


def _check_smaller(session: Session, fidelity: Fidelity) -> None:
    height, width = full_size(session) or (None, None)
    limits = {
        "num_inference_steps": session.config.sampling.num_inference_steps,
        "height": height,
        "width": width,
        "max_sequence_length": session.bench.sampler.max_sequence_length,
    }
    for name, limit in limits.items():
        value = getattr(fidelity, name)
        if value is None:
            continue
        if name != "num_inference_steps" and not _takes(session, name):
            kind = type(session.bench.pipe).__name__
            raise ConfigError(
                f"search.fidelity.{name} is {value}, but {kind} takes no {name}. Leave it out."
            )
        if limit is not None and value > limit:
            raise ConfigError(
                f"search.fidelity.{name} is {value}, more than the {limit} of the full fidelity. "
                "Choose fewer, or leave it out."
            )
    steps = fidelity.num_inference_steps or session.config.sampling.num_inference_steps
    if fidelity.cache_interval is not None and fidelity.cache_interval >= steps:
        raise ConfigError(
            f"search.fidelity.cache_interval is {fidelity.cache_interval}, but there are {steps} "
            "steps, of which only the first would be computed. Choose a smaller one."
        )


def _takes(session: Session, name: str) -> bool:
    if name == "max_sequence_length":
        return session.bench.sampler.max_sequence_length is not None
    return name in call_arguments(session.bench.pipe)


def try_out(session: Session, fidelity: Fidelity) -> None:
    """Sample images of another size or text at two steps, for one prompt, and score another size.

    Fewer steps and a cache are nothing that a pipeline could refuse; they are not tried.

    Raises:
        ConfigError: the pipeline or a reward refuses them.
    """
    resized = (fidelity.height, fidelity.width) != (None, None)
    if not resized and fidelity.max_sequence_length is None:
        return
    steps = min(2, session.config.sampling.num_inference_steps)
    count = session.config.search.images_per_prompt
    noises = session.noises("trial", 0, [_longest(session)], count)
    start = session.space.coefficients(session.space.start)
    try:
        images = session.sample(
            start, noises, fidelity.updated(Fidelity(num_inference_steps=steps))
        )
        if resized:
            session.bench.score(images, noises, session.objective)
    except RunError:  # memory, which says what to do itself
        raise
    except (CalibriError, *_REFUSALS) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"Images at {fidelity.label} cannot be sampled and scored: {str(error).strip()} Choose "
            "another search.fidelity, or leave it out."
        ) from error
