import io

import pytest
from rich.console import Console

from calibri.cli.display import command, printable, show_evaluation, signed
from calibri.results import Comparison, Evaluation, Figure, SettingResult

REWARDS = ["shapes", "shapes-judge"]


def figure(mean):
    return Figure(mean=mean, low=mean - 0.01, high=mean + 0.02, n=8)


def setting(calibrated, steps):
    label = f"{'calibrated' if calibrated else 'original'}, {steps} steps"
    return SettingResult(
        label=label,
        calibrated=calibrated,
        num_inference_steps=steps,
        guidance_scale=1.0,
        nfe=steps,
        scores={name: figure(0.1 * steps) for name in REWARDS},
        diversity=0.25,
        frechet=None,
    )


def evaluation():
    return Evaluation(
        objective="shapes",
        held_out_rewards=["shapes-judge"],
        variants=dict.fromkeys(REWARDS, "1"),
        num_prompts=8,
        images_per_prompt=2,
        seed=0,
        settings=[setting(True, 6), setting(False, 6), setting(False, 12)],
        comparisons=[
            Comparison(
                reward=name,
                against=f"original, {steps} steps",
                num_inference_steps=steps,
                difference=figure(0.1 - 0.01 * steps),
            )
            for steps in (6, 12)
            for name in REWARDS
        ],
    )


@pytest.mark.parametrize("width", [60, 100])
def test_tables_fit_and_show_every_figure_whole(width):
    console = Console(width=width, file=io.StringIO(), record=True)
    show_evaluation(console, evaluation())
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert text.count("[0.590, 0.620]") == 4
    assert text.count("[1.190, 1.220]") == 2
    assert text.count("+0.040") == 2
    assert text.count("[-0.030, +0.000]") == 2
    assert "…" not in text
    assert "shapes-judge (held out)" in text
    assert "shapes (held out)" not in text


def test_images_that_could_not_be_scored_are_told():
    texts = []
    for dropped in (0, 3):
        console = Console(file=io.StringIO(), record=True)
        show_evaluation(console, evaluation().model_copy(update={"dropped": dropped}))
        texts.append(console.export_text())
    assert "left out" not in texts[0]
    assert "3 images could not be scored and are left out." in texts[1]


def test_printable_leaves_text_and_escapes_what_steers_a_terminal():
    assert printable("Grüße, 世界 🙂\n[bold]") == "Grüße, 世界 🙂\n[bold]"
    assert printable("a\x1b[2J\r\x07\u202eb") == r"a\x1b[2J\r\x07\u202eb"


def test_signed_has_no_negative_zero():
    assert signed(Figure(mean=-0.0001, low=-0.5, high=0.0, n=3)) == "+0.000 [-0.500, +0.000]"


def test_command_survives_a_shell():
    assert command("calibri", "generate", 'it\'s a "circle"') == (
        "calibri generate 'it'\"'\"'s a \"circle\"'"
    )
