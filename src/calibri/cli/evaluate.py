"""``calibri evaluate``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from calibri.cli.display import loading, out, say, show_evaluation
from calibri.cli.options import (
    DATA,
    CalibrationArgument,
    DeviceOption,
    JsonOption,
    LoraOption,
    PipelineOption,
)
from calibri.cli.paths import calibration_source
from calibri.cli.progress import watching
from calibri.cli.quiet import quiet_libraries
from calibri.cli.tally import Tally
from calibri.errors import RewardError

_Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="Prompts that the search did not use (.txt, .json, .jsonl, .csv), or 'shapes' "
        "for the held-out captions of the shipped world.",
        rich_help_panel=DATA,
    ),
]
_Reward = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        metavar="NAME",
        help="Reward to score with; repeatable. Default: those of the calibration.",
        rich_help_panel=DATA,
    ),
]
_Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME.KEY=VALUE",
        help="Option of a reward, over the one that the calibration remembers; repeatable.",
        rich_help_panel=DATA,
    ),
]
_NumPrompts = Annotated[
    int, typer.Option("--num-prompts", min=2, help="Prompts to use.", rich_help_panel=DATA)
]
_Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, help="Of the noise; not the seed of the run.", rich_help_panel=DATA
    ),
]


def evaluate(
    calibration: CalibrationArgument,
    pipeline: PipelineOption = None,
    lora: LoraOption = None,
    prompts: _Prompts = None,
    reward: _Reward = None,
    option: _Option = None,
    num_prompts: _NumPrompts = 256,
    seed: _Seed = 1,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Score a calibration against the original model on fresh prompts and the same noise.

    calibri evaluate runs/20260131-120000
    calibri evaluate runs/20260131-120000 --num-prompts 64 --seed 7 --json
    calibri evaluate my-calibration --option judge.base_url=http://127.0.0.1:8000/v1
    """
    source = calibration_source(calibration)
    with loading("Starting"):
        from calibri import evaluate as evaluate_calibration
        from calibri.artifact import Calibration
        from calibri.configure import check_own_prompts
        from calibri.runs import verdict

        loaded = Calibration.from_pretrained(source)
        check_own_prompts(pipeline or loaded.base_model, prompts)
        options = _options(option or [])
        quiet_libraries()
    with watching(Tally(), loading=f"Loading {pipeline or loaded.base_model}") as progress:
        evaluation = evaluate_calibration(
            loaded,
            pipeline=pipeline,
            lora=lora,
            prompts=prompts,
            rewards=reward,
            reward_options=options,
            num_prompts=num_prompts,
            seed=seed,
            device=device,
            progress=progress,
        )
    console = out()
    if as_json:
        typer.echo(evaluation.model_dump_json(indent=2))
        return
    say(console, Text(verdict(evaluation), style="bold"))
    show_evaluation(console, evaluation)


def _options(texts: list[str]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    for name, key, value in map(parse_option, texts):
        options.setdefault(name, {})[key] = value
    return options


def parse_option(text: str) -> tuple[str, str, Any]:
    """Read ``NAME.KEY=VALUE``; the value is YAML, and a name may have dots, as ``hpsv2.1``.

    Returns:
        Name, key and value.

    Raises:
        RewardError: it is of another form.
    """
    import yaml

    where, separator, value = text.partition("=")
    name, _, key = where.strip().rpartition(".")
    if not (separator and name and key):
        raise RewardError(
            f"'{text}' is not of the form NAME.KEY=VALUE, e.g. judge.base_url=http://127.0.0.1:1/v1"
        )
    try:
        return name, key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RewardError(f"Cannot read the value of '{text}' as YAML: {error}") from error
