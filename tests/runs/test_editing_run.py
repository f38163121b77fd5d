"""Editing pipelines are calibrated on pairs of a picture and an instruction."""

import importlib
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import calibri
from calibri.config import SamplingConfig
from calibri.errors import CalibriError, ConfigError, RewardError
from calibri.prompts import Prompt
from calibri.rewards import RewardInfo
from calibri.sampling.sampler import Noise, Sampler
from tests.sampling.conditioned import picture
from tests.sampling.conditioned_cases import CASES

EDITING = {case.id: case for case in CASES if case.id in ("FluxKontext", "QwenImageEdit")}
SEED_OF = dict(zip(("a", "b", "c", "d", "e", "f", "g", "h"), range(8), strict=True))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    kontext = importlib.import_module("diffusers.pipelines.flux.pipeline_flux_kontext")
    monkeypatch.setattr(kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(16, 16)])
    edit = importlib.import_module("diffusers.pipelines.qwenimage.pipeline_qwenimage_edit")
    sizes = edit.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda _, ratio: sizes(1024, ratio))


@pytest.fixture
def pairs(tmp_path):
    """Eight pictures with the same two instructions."""
    for name, seed in SEED_OF.items():
        picture(16, seed).save(tmp_path / f"{name}.png")
    write(tmp_path / "held-out.jsonl", ["make it blue"])
    return write(tmp_path / "pairs.jsonl", ["make it red", "add a circle"])


def write(path, texts):
    pairs = [{"prompt": text, "image": f"{name}.png"} for name in SEED_OF for text in texts]
    path.write_text("\n".join(map(json.dumps, pairs)))
    return path


class Kept:
    """Scores a result by its distance from the source, and remembers what it saw."""

    def __init__(self):
        self.info = RewardInfo(name="kept", variant="1")
        self.seen = []

    def score(self, images, prompts):
        raise AssertionError("a reward of edits is given the sources")

    def score_edits(self, images, prompts, sources):
        self.seen += [(text, source) for text, source in zip(prompts, sources, strict=True)]
        means = torch.stack([source.float().mean() for source in sources])
        return -(images.float().mean((1, 2, 3)) - means).abs() / 255


def run(pipe, pairs, reward, runs, **sampling):
    return calibri.calibrate(
        pipeline=pipe,
        rewards=[reward],
        name="edits",
        runs=str(runs),
        prompts=dict(train=str(pairs), held_out=str(pairs.with_name("held-out.jsonl"))),
        sampling=dict(num_inference_steps=2, batch_size=1, height=16, width=16, workers=1)
        | sampling,
        space=dict(granularity="block"),
        search=dict(generations=1, popsize=4, bucket_size=2, num_validation_prompts=5),
        evaluation=dict(num_prompts=2, step_multiples=(1,), num_samples=0, images_per_prompt=2),
    )


@pytest.mark.parametrize("case", EDITING.values(), ids=EDITING)
def test_a_search_shows_source_and_instruction_to_pipeline_and_reward(case, pairs, tmp_path):
    reward, pipe = Kept(), case.build()
    shown = []
    preprocess = pipe.image_processor.preprocess
    pipe.image_processor.preprocess = lambda image, *a: shown.append(image) or preprocess(image, *a)
    run(pipe, pairs, reward, tmp_path / "runs")
    assert {text for text, _ in reward.seen} == {"make it red", "add a circle", "make it blue"}
    paths = [tmp_path / f"{name}.png" for name in SEED_OF]
    known = [torch.from_numpy(np.array(Image.open(path))) for path in paths]
    for _, source in reward.seen:
        assert any(torch.equal(source.permute(1, 2, 0), each) for each in known)
    assert shown
    again = Kept()
    evaluation = calibri.evaluate(
        str(tmp_path / "runs" / "edits"),
        pipeline=pipe,
        prompts=str(pairs),
        rewards=[again],
        num_prompts=2,
        batch_size=1,
        step_multiples=(1,),
    )
    assert again.seen
    assert evaluation.num_prompts == 2


def test_a_run_that_was_cut_off_is_resumed_with_its_pictures(pairs, tmp_path):
    pipe, folder = EDITING["FluxKontext"].build(), tmp_path / "runs" / "edits"
    run(pipe, pairs, Kept(), tmp_path / "runs")
    first = calibri.Calibration.from_pretrained(folder).coefficients
    journal = folder / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    shutil.rmtree(folder / "calibration")
    reward = Kept()
    calibri.resume(str(folder), pipeline=pipe, rewards=[reward])
    assert reward.seen
    assert calibri.Calibration.from_pretrained(folder).coefficients == first


@pytest.mark.parametrize("case", EDITING.values(), ids=EDITING)
def test_a_size_that_is_asked_for_is_that_of_the_result(case):
    pipe = case.build()
    settings = SamplingConfig(num_inference_steps=1, batch_size=1, height=32, width=16)
    sampler = Sampler(pipe, settings)
    prompt = Prompt("0", "make it red", {"image": "-", "image_sha256": "0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibri.sampling.sampler.load_picture", lambda _: picture(16))
        images = sampler.sample([Noise(prompt, 0)])
    assert images.shape == (1, 3, 32, 16)


def test_the_picture_of_a_prompt_reaches_its_own_result(pairs, tmp_path):
    case = EDITING["FluxKontext"]
    pipe = case.build()
    one, two = (
        calibri.generate(
            pipe, "make it red", image=tmp_path / f"{name}.png", num_inference_steps=1
        )[0]
        for name in "ab"
    )
    assert not np.array_equal(np.array(one), np.array(two))


def test_what_does_not_go_together_is_said_before_work_starts(pairs, tmp_path):
    pipe = EDITING["QwenImageEdit"].build()
    with pytest.raises(ConfigError, match="batch_size to 1"):
        run(pipe, pairs, Kept(), tmp_path / "runs", batch_size=2)
    with pytest.raises(ConfigError, match="starts from a picture"):
        calibri.generate(pipe, "make it red")
    with pytest.raises(ConfigError, match="makes pictures from text"):
        calibri.generate("shapes", "a red circle", image=tmp_path / "a.png")
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"make it {i}" for i in range(20)))
    with pytest.raises(RewardError, match="has none"):
        run(pipe, texts, Kept(), tmp_path / "runs")
    with pytest.raises(CalibriError, match="starts from a picture"):
        run(pipe, texts, brightness, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def brightness(images, prompts):
    return images.float().mean((1, 2, 3))
