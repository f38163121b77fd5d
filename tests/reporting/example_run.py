"""A run that looks like a real one: 40 generations, 23 coefficients, 5 settings, 8 samples."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from calibri.results import (
    FULL,
    Checkpoint,
    Comparison,
    Evaluation,
    Figure,
    FirstMeasurement,
    Generation,
    RunSummary,
    SampleRow,
    SearchResult,
    SettingResult,
    SiteRecord,
    VarianceComponents,
)

PROMPTS = (
    "a small red circle above a blue square",
    "two large green triangles",
    "a yellow cross left of a large cyan circle",
    "a magenta square and a small green cross",
    "a large blue triangle",
    "two small cyan circles",
    "a green square below a yellow circle",
    "a red cross right of a small magenta triangle",
)
_COLOURS = ("#d33", "#3a3", "#dc3", "#c3c", "#35d", "#3cc", "#3a3", "#d33")
_LABELS = ("original, 4 steps", "calibrated, 4 steps", "original, 8 steps", "original, 12 steps")


def figure(mean: float, half: float, n: int = 256) -> Figure:
    return Figure(mean=mean, low=mean - half, high=mean + half, n=n)


def setting(calibrated: bool, steps: int, shapes: float, judge: float) -> SettingResult:
    return SettingResult(
        label=f"{'calibrated' if calibrated else 'original'}, {steps} steps",
        calibrated=calibrated,
        num_inference_steps=steps,
        guidance_scale=1.0,
        nfe=steps,
        scores={"shapes": figure(shapes, 0.014), "judge": figure(judge, 0.021)},
        diversity=0.19 - 0.004 * steps - 0.02 * calibrated,
        frechet=31.0 - 1.5 * steps - 6 * calibrated,
    )


def evaluation() -> Evaluation:
    gains = {"shapes": (0.1213, 0.0712, 0.0391), "judge": (0.1466, 0.0617, 0.0089)}
    return Evaluation(
        objective="shapes",
        held_out_rewards=["judge"],
        variants={"shapes": "compositional score 1", "judge": "judge network 1"},
        num_prompts=256,
        images_per_prompt=2,
        seed=7,
        settings=[
            setting(True, 4, 0.6124, 0.7012),
            setting(True, 8, 0.6391, 0.7266),
            setting(False, 4, 0.4911, 0.5546),
            setting(False, 8, 0.5412, 0.6395),
            setting(False, 12, 0.5733, 0.6923),
        ],
        comparisons=[
            Comparison(
                reward=reward,
                against=f"original, {steps} steps",
                num_inference_steps=steps,
                difference=figure(gain, 0.0125 if reward == "shapes" else 0.018),
            )
            for reward, values in gains.items()
            for steps, gain in zip((4, 8, 12), values, strict=True)
        ],
    )


def search(generations: int = 40) -> SearchResult:
    rng = np.random.default_rng(0)
    rows = []
    for g in range(generations):
        baseline = 0.49 + 0.025 * rng.standard_normal()
        gain = 0.125 * (1 - np.exp(-g / 11)) - 0.06 * np.exp(-g / 3)
        mean = baseline + gain + 0.006 * rng.standard_normal()
        rows.append(
            Generation(
                generation=g,
                mean=mean,
                best=mean + 0.05,
                baseline=baseline,
                sigma=0.12 * np.exp(-g / 30) + 0.01 * rng.random(),
                images=320 * (g + 1),
                seconds=3.1 * (g + 1),
            )
        )
    checkpoints = [
        Checkpoint(
            generation=g,
            difference=figure(0.12 * (1 - np.exp(-g / 12)), 0.02, 64),
            chosen=g == generations - 1,
        )
        for g in (*range(9, generations - 1, 10), generations - 1)
    ]
    return SearchResult(
        coefficients={},
        generations=rows,
        checkpoints=checkpoints,
        stopped="all 40 generations were used",
        images=320 * generations,
        seconds=124.0,
    )


def measurement() -> FirstMeasurement:
    return FirstMeasurement(
        candidates=12,
        num_prompts=16,
        images_per_prompt=2,
        images=1248,
        components=VarianceComponents(
            candidate=0.0004, prompt=0.04, candidate_prompt=0.002, noise=0.01, residual=0.006
        ),
        reliability=0.31,
        expected_tau=0.38,
        self_tau=figure(0.4, 0.2, 16),
        fidelities=[],
        popsize=40,
        bucket_size=8,
        fidelity=FULL,
        reasons=["40 candidates x 8 prompts a generation.", "2 steps rank alike: not used."],
    )


def sites(blocks: int = 6) -> list[SiteRecord]:
    rows = []
    for block in range(blocks):
        for path, layer, stream in (
            ("attn[0]", "attn", "visual"),
            ("attn[1]", "attn", "text"),
            ("ff", "mlp", "visual"),
            ("ff_context", "mlp", "text"),
        ):
            # The last block of an SD3 transformer has no text branches.
            if block == blocks - 1 and stream == "text":
                continue
            parent = f"transformer_blocks.{block}"
            name = f"{parent}.{path}"
            rows.append(
                SiteRecord(name=name, block=parent, layer=layer, stream=stream, parameter=name)
            )
    return rows


def summary(**changes: object) -> RunSummary:
    rng = np.random.default_rng(1)
    records = sites()
    coefficients = {site.parameter: 1 + 0.22 * rng.standard_normal() for site in records}
    coefficients["output"] = 1.043
    fields: dict[str, object] = {
        "name": "shapes-gate-4",
        "pipeline": "shapes",
        "transformer_class": "SD3Transformer2DModel",
        "calibri_version": "0.1.0",
        "created": "2026-02-03T14:15:16+00:00",
        "verdict": "At 4 steps the calibrated model is better on every reward: shapes +0.121 "
        "[+0.109, +0.134], judge +0.147 [+0.129, +0.165] (95% intervals, 256 held-out prompts). "
        "On judge it is above the original at 8 steps, 2 times as many.",
        "config": {
            "pipeline": "shapes",
            "seed": 0,
            "sampling": {"num_inference_steps": 4, "guidance_scale": 1.0, "batch_size": 64},
            "search": {"method": "cma", "sigma0": 0.12, "generations": 40, "bucket_size": 16},
            "rewards": {"objective": "shapes", "held_out": ["judge"]},
        },
        "granularity": "gate",
        "sites": records,
        "coefficients": coefficients,
        "start": dict.fromkeys(coefficients, 1.0),
        "search": search(),
        "evaluation": evaluation(),
        "samples": samples(),
        "machine": {
            "system": "Linux x86_64",
            "python": "3.11.7",
            "cores": "2",
            "threads": "2",
            "device": "cpu",
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "cmaes": "0.13.0",
        },
    }
    return RunSummary.model_validate(fields | changes)


def samples() -> list[SampleRow]:
    return [
        SampleRow(
            prompt=prompt,
            seed=1000 + row,
            files={label: f"sample-{row:02d}-{k}.png" for k, label in enumerate(_LABELS)},
        )
        for row, prompt in enumerate(PROMPTS)
    ]


def png(row: int, column: int, size: int = 24) -> bytes:
    """A coloured shape, sharper in the later columns."""
    image = Image.new("RGB", (size, size), (205 - 4 * row, 200, 196 + 3 * row))
    draw = ImageDraw.Draw(image)
    scale = size / 24
    box = [v * scale for v in (6 + row % 3, 5 + row % 2, 16 + row % 3, 15 + row % 2)]
    (draw.ellipse if row % 2 else draw.rectangle)(box, fill=_COLOURS[row % 8])
    noise = np.random.default_rng(row).normal(0, (36, 10, 24, 14)[column % 4], (size, size, 3))
    pixels = np.clip(np.asarray(image, dtype=float) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def images(size: int = 24) -> dict[str, bytes]:
    return {
        name: png(row, column, size)
        for row, sample in enumerate(samples())
        for column, name in enumerate(sample.files.values())
    }
