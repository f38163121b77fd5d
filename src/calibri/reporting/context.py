"""What the page says, section by section, computed from a run's summary."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

from calibri.reporting.charts import Point, tone
from calibri.reporting.metrics import METRICS, Metric
from calibri.reporting.text import count, duration, general, interval, mean, number
from calibri.results import Comparison, Evaluation, Figure, RunSummary, SampleRow, SettingResult

_PNG = b"\x89PNG\r\n\x1a\n"
_WORDS = {"good": "better", "bad": "worse", "open": "not distinguishable"}
_SMALL = 128  # pixels; smaller pictures are enlarged with hard edges


@dataclass(frozen=True)
class KeyNumber:
    """A big figure: its value, what it is, a note below, and good, bad or open."""

    value: str
    label: str
    note: str
    tone: str = "open"


@dataclass(frozen=True)
class Tile:
    """One image of the grid; ``source`` is a data URI, or None when the file is not there."""

    label: str
    source: str | None
    calibrated: bool
    pixelated: bool


@dataclass(frozen=True)
class Row:
    """One prompt with its images, all from the same noise."""

    prompt: str
    seed: int
    tiles: tuple[Tile, ...]

    @property
    def is_large(self) -> bool:
        """Whether it has a picture that is shown as it is."""
        return any(tile.source and not tile.pixelated for tile in self.tiles)


@dataclass(frozen=True)
class Trend:
    """One score against sampling steps."""

    name: str
    note: str
    points: tuple[Point, ...]


def rewards_of(evaluation: Evaluation) -> dict[str, str]:
    """Reward name to its role; the objective first."""
    names = [evaluation.objective, *evaluation.held_out_rewards]
    names += [name for setting in evaluation.settings for name in setting.scores]
    return {name: "objective" if name == evaluation.objective else "held out" for name in names}


def ordered_settings(evaluation: Evaluation) -> list[SettingResult]:
    """The original model's settings first, then the calibrated ones, by steps."""
    return sorted(evaluation.settings, key=lambda s: (s.calibrated, s.num_inference_steps))


def base_steps(evaluation: Evaluation) -> int | None:
    """Steps of the calibrated images that every comparison is about."""
    return min((c.num_inference_steps for c in evaluation.comparisons), default=None)


def comparison_label(comparison: Comparison, base: int | None) -> str:
    """Name a comparison by what it is against, with the multiple of the steps."""
    if not base or comparison.num_inference_steps == base:
        return f"against {comparison.against}"
    multiple = general(comparison.num_inference_steps / base)
    return f"against {comparison.against} ({multiple}\N{MULTIPLICATION SIGN})"


def comparisons_by_reward(evaluation: Evaluation) -> dict[str, list[tuple[str, Figure]]]:
    """Reward name to its labelled differences, by the steps of the original."""
    base = base_steps(evaluation)
    rows: dict[str, list[tuple[str, Figure]]] = {}
    for name in rewards_of(evaluation):
        own = [c for c in evaluation.comparisons if c.reward == name]
        own.sort(key=lambda c: c.num_inference_steps)
        if own:
            rows[name] = [(comparison_label(c, base), c.difference) for c in own]
    return rows


def key_numbers(summary: RunSummary) -> list[KeyNumber]:
    """The two or three figures that matter most."""
    evaluation = summary.evaluation
    gains = gain_numbers(evaluation) if evaluation else _checkpoint_numbers(summary)
    steps = _steps_number(evaluation) if evaluation else None
    return [*gains, steps or _cost_number(summary)]


def verdict_details(evaluation: Evaluation | None) -> list[str]:
    """What else the verdict rests on: original models of more steps, and sets of images."""
    if evaluation is None or (base := base_steps(evaluation)) is None:
        return []
    steps = sorted({c.num_inference_steps for c in evaluation.comparisons} - {base})
    lines = [_against(evaluation, base, count) for count in steps]
    metrics = [said for metric in METRICS if (said := _set_words(evaluation, base, metric))]
    return [*lines, f"At {base} steps: {', '.join(metrics)}."] if metrics else lines


def _against(evaluation: Evaluation, base: int, steps: int) -> str:
    found = {c.reward: c for c in evaluation.comparisons if c.num_inference_steps == steps}
    said = [
        f"{name} {mean(found[name].difference, sign=True)} "
        f"({interval(found[name].difference, sign=True)}), {_WORDS[tone(found[name].difference)]}"
        for name in rewards_of(evaluation)
        if name in found
    ]
    multiple = general(steps / base)
    return (
        f"{base} calibrated steps against {steps} original ones "
        f"({multiple}\N{MULTIPLICATION SIGN}): {'; '.join(said)}."
    )


def _set_words(evaluation: Evaluation, base: int, metric: Metric) -> str:
    settings = (evaluation.setting(calibrated=c, num_inference_steps=base) for c in (True, False))
    values: list[float | None] = [getattr(setting, metric.name) for setting in settings if setting]
    if len(values) < 2 or None in values:
        return ""
    after, before = (number(value, metric.digits) for value in values)
    note = f" ({metric.better})" if metric.better else ""
    return f"{metric.title[0]} {after} against {before}{note}"


def gain_numbers(evaluation: Evaluation) -> list[KeyNumber]:
    """What the calibration gains at the same steps, on the objective and another reward."""
    base = base_steps(evaluation)
    same = {c.reward: c for c in evaluation.comparisons if c.num_inference_steps == base}
    names = [name for name in rewards_of(evaluation) if name in same][:2]
    return [_gain(evaluation, same[name]) for name in names]


def _gain(evaluation: Evaluation, comparison: Comparison) -> KeyNumber:
    role = rewards_of(evaluation)[comparison.reward]
    difference = comparison.difference
    return KeyNumber(
        value=mean(difference, sign=True),
        label=f"{comparison.reward} ({role}) at {comparison.num_inference_steps} steps",
        note=f"95% interval {interval(difference, sign=True)}",
        tone=tone(difference),
    )


def _steps_number(evaluation: Evaluation) -> KeyNumber | None:
    base = base_steps(evaluation)
    name = next(iter(evaluation.held_out_rewards), evaluation.objective)
    above = [c for c in evaluation.comparisons if c.reward == name and c.difference.low > 0]
    best = max(above, key=lambda c: c.num_inference_steps, default=None)
    if not base or best is None or best.num_inference_steps <= base:
        return None
    return KeyNumber(
        value=f"{general(best.num_inference_steps / base)}\N{MULTIPLICATION SIGN}",
        label="fewer steps than the original",
        note=f"on {name}, {base} calibrated steps score above {best.num_inference_steps} "
        "original ones",
        tone="good",
    )


def _checkpoint_numbers(summary: RunSummary) -> list[KeyNumber]:
    chosen = next((c for c in summary.search.checkpoints if c.chosen), None)
    if chosen is None:
        return []
    return [
        KeyNumber(
            value=mean(chosen.difference, sign=True),
            label="objective on the validation prompts",
            note=f"95% interval {interval(chosen.difference, sign=True)}",
            tone=tone(chosen.difference),
        )
    ]


def _cost_number(summary: RunSummary) -> KeyNumber:
    return KeyNumber(
        value=duration(summary.search.seconds),
        label="of search",
        note=f"{count(summary.search.images)} images",
    )


def trends(evaluation: Evaluation) -> list[Trend]:
    """Every reward, then the figures about sets of images where measured, against steps."""
    settings = evaluation.settings
    rewards = [
        Trend(name, role, tuple(_point(s, s.scores[name]) for s in settings if name in s.scores))
        for name, role in rewards_of(evaluation).items()
    ]
    extra = [Trend(*metric.title, _points(settings, metric.name)) for metric in METRICS]
    return [trend for trend in [*rewards, *extra] if trend.points]


def _point(setting: SettingResult, figure: Figure) -> Point:
    spoken = f"{setting.label}: {mean(figure)} ({interval(figure)})"
    return Point(
        setting.num_inference_steps,
        figure.mean,
        figure.low,
        figure.high,
        setting.calibrated,
        spoken,
    )


def _points(settings: list[SettingResult], attribute: str) -> tuple[Point, ...]:
    values = [(s, getattr(s, attribute)) for s in settings]
    return tuple(
        Point(s.num_inference_steps, v, None, None, s.calibrated, f"{s.label}: {general(v)}")
        for s, v in values
        if v is not None
    )


def sample_rows(summary: RunSummary, images: Mapping[str, bytes]) -> list[Row]:
    """The image grid: prompts by settings."""
    evaluation = summary.evaluation
    calibrated = {s.label for s in evaluation.settings if s.calibrated} if evaluation else set()
    return [_row(sample, images, calibrated) for sample in summary.samples]


def _row(sample: SampleRow, images: Mapping[str, bytes], calibrated: set[str]) -> Row:
    tiles = tuple(
        _tile(label, images.get(file), label in calibrated) for label, file in sample.files.items()
    )
    return Row(sample.prompt, sample.seed, tiles)


def _tile(label: str, data: bytes | None, calibrated: bool) -> Tile:
    if data is None or not data.startswith(_PNG):
        return Tile(label, None, calibrated, pixelated=False)
    # Width and height stand right behind the name of the first chunk (PNG, section 11.2.1).
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return Tile(label, source, calibrated, max(width, height) < _SMALL)
