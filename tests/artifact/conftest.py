from __future__ import annotations

import pytest

from calibri.artifact.calibration import Calibration, Sampling
from calibri.coefficients.coefficients import Coefficients
from calibri.results import Comparison, Evaluation, Figure, SettingResult


def _setting(calibrated: bool, steps: int, score: float) -> SettingResult:
    return SettingResult(
        label=f"{'calibrated' if calibrated else 'original'}, {steps} steps",
        calibrated=calibrated,
        num_inference_steps=steps,
        guidance_scale=4.5,
        nfe=2 * steps,
        scores={
            "shapes": Figure(mean=score, low=score - 0.01, high=score + 0.01, n=256),
            "judge": Figure(mean=score / 2, low=score / 2 - 0.01, high=score / 2 + 0.01, n=256),
        },
    )


@pytest.fixture
def evaluation() -> Evaluation:
    return Evaluation(
        objective="shapes",
        held_out_rewards=["judge"],
        variants={"shapes": "v1", "judge": "v1"},
        num_prompts=256,
        images_per_prompt=2,
        seed=7,
        settings=[_setting(False, 4, 0.5), _setting(False, 8, 0.55), _setting(True, 4, 0.625)],
        comparisons=[
            Comparison(
                reward="shapes",
                against="original, 4 steps",
                num_inference_steps=4,
                difference=Figure(mean=0.125, low=0.115, high=0.135, n=256),
            )
        ],
    )


@pytest.fixture
def calibration(evaluation: Evaluation) -> Calibration:
    names = [f"transformer_blocks.{i}.{layer}" for i in range(3) for layer in ("attn", "mlp")]
    return Calibration(
        calibri_version="0.1.0",
        transformer_class="SD3Transformer2DModel",
        base_model="someone/a-pipeline",
        base_revision="0123456789abcdef0123456789abcdef01234567",
        coefficients=Coefficients(
            granularity="layer",
            scales=(
                {name: 1 + 0.1 / (i + 3) for i, name in enumerate(names)},
                {name: 1 - 0.1 / (i + 7) for i, name in enumerate(names)},
            ),
            output_weights=(4.7, -3.1),
            start_weights=(4.5, -3.5),
        ),
        sampling=Sampling(num_inference_steps=4, guidance_scale=4.5, dtype="float32"),
        rewards={"shapes": "v1", "judge": "v1"},
        objective="shapes",
        provenance={"seed": 0, "generations": 40, "sigma0": 0.25, "command": "calibri calibrate"},
        evaluation=evaluation,
    )
