"""What a run will cost: images, FLOPs, hours and memory, before any of it is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from calibri.coefficients import (
    Capabilities,
    ResolvedConfig,
    SearchSpace,
    build_space,
    resolve,
)
from calibri.config import RunConfig, validate_config
from calibri.configure import ConfigLike, merge_config
from calibri.errors import ConfigError
from calibri.pipelines import (
    Geometry,
    build_networks,
    find_geometry,
    forward_of,
    is_published,
    networks_of,
    sites_of,
)
from calibri.planning.activations import GradientMemory, count_gradient
from calibri.planning.flops import ImageFlops, count_parameters, image_flops, image_size
from calibri.planning.procedures import (
    TERA,
    Counted,
    Procedure,
    images_by_phase,
    measures_first,
)
from calibri.planning.throughput import (
    MACHINES,
    MEASURED_STEPS,
    Machine,
    Speed,
    machine_here,
    measure,
)
from calibri.prompts import is_prompt_set, prompt_sets
from calibri.results import FULL, Record
from calibri.rewards import reward_cost, used_rewards
from calibri.signatures import typed

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_REWARD = "reward"  # what the names of rewards' networks begin with


class ComponentSize(Record):
    """A network of the pipeline or of a reward, in the run's precision."""

    name: str
    parameters: int
    gigabytes: float


class Plan(Record):
    """What a run will cost.

    Attributes:
        parameters: numbers that are searched.
        height: of an image, in pixels.
        width: of an image, in pixels.
        nfe: transformer evaluations per image.
        forward_teraflop: one of them.
        image_teraflop: one image, by part; its prompt encoded with it.
        components: with their memory; activations come on top.
        resident_gigabytes: all networks at once.
        in_turns_gigabytes: the pipeline or the rewards, whichever is larger (``rewards.offload``).
        offloaded_gigabytes: the largest network alone.
        gradient: activations of one image with its gradient; None where the search has none.
        machine: title of the machine, when it is one of the table.
        machine_gigabytes: its memory.
        procedures: the paper's and this configuration's.
        notes: what is not in the figures, in words.
    """

    pipeline: str
    transformer_class: str
    granularity: str
    parameters: int
    height: int
    width: int
    num_inference_steps: int
    nfe: int
    forward_teraflop: float
    image_teraflop: dict[str, float]
    components: list[ComponentSize]
    resident_gigabytes: float
    in_turns_gigabytes: float
    offloaded_gigabytes: float
    gradient: GradientMemory | None
    machine: str | None
    machine_gigabytes: int | None
    procedures: list[Procedure]
    notes: list[str]


def with_defaults(config: RunConfig, geometry: Geometry) -> RunConfig:
    """Fill what a configuration leaves open with the settings of the paper for that model.

    Only under the names that are known here: of a folder or a repository a run starts as it is
    configured.
    """
    if not is_published(config.pipeline):
        return config
    data: dict[str, Any] = config.model_dump(exclude_unset=True)
    data.setdefault("dtype", geometry.dtype)
    for section, values in geometry.defaults.items():
        data[section] = {**values, **data.get(section, {})}
    return validate_config(data)


@typed
def plan(
    config: ConfigLike | None = None,
    *,
    machine: str | None = None,
    tflops: float | None = None,
    measured: bool = False,
    **values: Any,
) -> Plan:
    """Count what a run will cost; no weights are loaded unless the speed is measured.

    Args:
        config: of the run, as ``calibri.calibrate`` takes it; under the names that are known
            here, such as ``"flux.1-dev"``, what it leaves open is as in the paper.
        machine: ``"h100"`` or another that ``calibri plan --help`` names; None for this one if
            it is among them, and for a model of the paper an H100.
        tflops: throughput that was measured elsewhere, in TFLOP/s.
        measured: time a few batches here.
        values: keys of the configuration, which win over ``config`` (``calibri.calibrate``).

    Raises:
        ConfigError: a keyword or value is wrong.
        CalibriError: the pipeline's configuration cannot be read or counted, or the machine is
            not known.
    """
    config = merge_config(config, values, ("machine", "tflops", "measured"))
    geometry = find_geometry(config.pipeline, config.revision)
    config = with_defaults(config, geometry)
    _check_prompts(config)
    networks = build_networks(geometry)
    guidance = _guidance(networks, config)
    capabilities = _capabilities(networks, guidance)
    config = resolve(config, capabilities)
    counted = _counted(config, geometry, networks, guidance)
    flops = counted.flops
    height, width = image_size(networks, config)
    chosen = _machine(machine, geometry)
    speeds = _measured(config, flops, guidance) if measured else _speeds(chosen, tflops)
    paper, ours = _spaces(config, capabilities)
    components = _sizes(networks, config)
    return Plan(
        pipeline=config.pipeline,
        transformer_class=type(networks["transformer"]).__name__,
        granularity=config.space.granularity,
        parameters=ours.size,
        height=height,
        width=width,
        num_inference_steps=config.sampling.num_inference_steps,
        nfe=counted.nfe,
        forward_teraflop=flops.forward / TERA,
        image_teraflop=counted.image(),
        components=components,
        resident_gigabytes=sum(component.gigabytes for component in components),
        in_turns_gigabytes=_alternating(components),
        offloaded_gigabytes=max(component.gigabytes for component in components),
        gradient=_gradient(config, geometry, networks, guidance),
        machine=chosen.title if chosen else None,
        machine_gigabytes=chosen.gigabytes if chosen else None,
        procedures=[counted.paper(geometry, paper.size, speeds), counted.ours(ours.size, speeds)],
        notes=_notes(config, ours.size),
    )


def image_teraflop(config: RunConfig, phases: Sequence[str]) -> dict[str, float]:
    """Count what one image of each phase costs on average, its prompt not encoded.

    Args:
        config: of a run, with nothing left open.
        phases: names of ``images_by_phase``; any other is counted as an image of ``sampling``.

    Returns:
        Phase to TFLOP: transformer, VAE and rewards.

    Raises:
        CalibriError: the pipeline's configuration cannot be read or counted.
    """
    geometry = find_geometry(config.pipeline, config.revision)
    networks = build_networks(geometry)
    counted = _counted(config, geometry, networks, _guidance(networks, config))
    return counted.by_phase(phases)


def _counted(
    config: RunConfig, geometry: Geometry, networks: Mapping[str, nn.Module], guidance: float
) -> Counted:
    flops, fidelity = image_flops(geometry, networks, config), config.search.fidelity
    cheaper = flops if fidelity == FULL else image_flops(geometry, networks, config, fidelity)
    branches = 2 if guidance > 1.0 else 1
    return Counted(config, flops, cheaper, branches * config.space.members, branches)


def _check_prompts(config: RunConfig) -> None:
    names = [name for name in (config.prompts.train, config.prompts.held_out) if name]
    # Generators give any number, and sets may have to be fetched, which is no way to count.
    if any(Path(name).suffix for name in names) and not any(map(is_prompt_set, names)):
        prompt_sets(config)


def _gradient(
    config: RunConfig, geometry: Geometry, networks: Mapping[str, nn.Module], guidance: float
) -> GradientMemory | None:
    if not config.search.method_info.uses_gradients:
        return None
    return count_gradient(geometry, networks, config, branches=2 if guidance > 1.0 else 1)


def _guidance(networks: Mapping[str, nn.Module], config: RunConfig) -> float:
    called = forward_of(type(networks["transformer"]).__name__)
    return max(1.0, float(getattr(config.sampling, called.guidance)))


def searched(networks: Mapping[str, nn.Module], config: RunConfig) -> SearchSpace:
    """Lay out the numbers that a search has, from the shapes of the networks alone.

    Args:
        networks: by role, on the meta device.
        config: see ``with_defaults``.

    Raises:
        CalibriError: the model has no such search.
    """
    capabilities = _capabilities(networks, _guidance(networks, config))
    return build_space(resolve(config, capabilities), capabilities)


def _capabilities(networks: Mapping[str, nn.Module], guidance: float) -> Capabilities:
    # There is no scheduler to ask here: models whose operations can be counted follow a flow with
    # a shift.
    transformer = networks["transformer"]
    known = networks_of(transformer)[0].knows_timesteps
    return Capabilities(sites_of(transformer), guidance, known, known)


def _spaces(config: ResolvedConfig, capabilities: Capabilities) -> tuple[SearchSpace, SearchSpace]:
    """What the paper's procedure and ours search."""
    papers = config.space.model_copy(update={"output_knots": 1, "shift": False})
    paper = config.model_copy(update={"space": papers})
    return build_space(paper, capabilities), build_space(config, capabilities)


def _machine(name: str | None, geometry: Geometry) -> Machine | None:
    if name is None:
        return machine_here() or (MACHINES["h100"] if geometry.defaults else None)
    if name.lower() not in MACHINES:
        raise ConfigError(
            f"No throughput is known for '{name}', only for {', '.join(MACHINES)}. Give --tflops, "
            "or --measure it."
        )
    return MACHINES[name.lower()]


def _measured(config: RunConfig, flops: ImageFlops, guidance: float) -> list[Speed]:
    branches = 2 if guidance > 1.0 else 1
    return [measure(config, MEASURED_STEPS * branches * flops.forward + flops.decode)]


def _speeds(machine: Machine | None, tflops: float | None) -> list[Speed]:
    if tflops is not None:
        if tflops <= 0:
            raise ConfigError(f"--tflops is {tflops}. Give a throughput above 0, in TFLOP/s.")
        return [Speed(label="as given", low=tflops, high=tflops, source="given")]
    return list(machine.speeds) if machine else []


def _sizes(networks: Mapping[str, nn.Module], config: RunConfig) -> list[ComponentSize]:
    width = _BYTES[config.dtype]
    counts = {role: count_parameters(network) for role, network in networks.items()}
    for name in used_rewards(config):
        if (cost := reward_cost(name)) and cost.billions:
            counts[f"{_REWARD} {name}"] = int(cost.billions * 1e9)
    return [
        ComponentSize(name=name, parameters=count, gigabytes=count * width / 1e9)
        for name, count in counts.items()
    ]


def _alternating(components: Sequence[ComponentSize]) -> float:
    rewards = sum(c.gigabytes for c in components if c.name.startswith(_REWARD))
    return max(rewards, sum(c.gigabytes for c in components) - rewards)


def _notes(config: RunConfig, size: int) -> list[str]:
    unknown = [name for name in used_rewards(config) if reward_cost(name) is None]
    notes = ["Activations come on top of the weights in memory, and grow with the batch."]
    if measures_first(config.search, sum(images_by_phase(config, size).values())):
        notes.append(
            "Before its search the run is measured (search.probe): about a twentieth more images, "
            "not counted here, and it may change candidates, prompts and fidelity."
        )
    if config.search.fidelity != FULL:
        notes.append(
            f"The generations are sampled at {config.search.fidelity.label}, checkpoints and final "
            "figures at full fidelity."
        )
    if unknown:
        notes.append(f"The cost of {', '.join(unknown)} is not known and left out.")
    return notes
