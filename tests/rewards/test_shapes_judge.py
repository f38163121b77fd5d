import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.reward import Reward
from calibri.rewards.shapes_judge import ShapesJudge
from calibri.shapes.judge_network import encode_captions, load_judge
from calibri.shapes.paths import JUDGE_PATH
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import all_captions, parse_caption, sample_prompts
from calibri.shapes.variations import DAMAGES, NEAR_MISSES


@pytest.fixture(scope="module")
def judge() -> ShapesJudge:
    return ShapesJudge()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return sample_prompts(300, 12, "held_out")


@pytest.fixture(scope="module")
def right(texts: list[str]) -> Tensor:
    scenes = [parse_caption(text) for text in texts]
    return render_batch(scenes, torch.Generator().manual_seed(0))


def test_it_is_a_reward(judge: ShapesJudge) -> None:
    assert isinstance(judge, Reward)
    assert judge.info.name == "shapes-judge"


def test_every_caption_has_its_own_slot_vector() -> None:
    vectors = encode_captions(all_captions())
    assert len(vectors.unique(dim=0)) == len(all_captions())


def test_it_accepts_right_pictures_of_captions_it_never_saw(
    judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    scores = judge.score(right, texts)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (scores > 0.5).float().mean() >= 0.85


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_right_ranks_above_a_scene_that_is_wrong_in_one_respect(
    name: str, judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    generator = torch.Generator().manual_seed(1)
    missed = [NEAR_MISSES[name](parse_caption(text), generator) for text in texts]
    rows = [i for i, scene in enumerate(missed) if scene is not None]
    wrong = render_batch([scene for scene in missed if scene is not None], generator)
    captions = [texts[i] for i in rows]
    ranked = judge.score(right[rows], captions) > judge.score(wrong, captions)
    assert ranked.float().mean() >= 0.9


@pytest.mark.parametrize("name", DAMAGES)
def test_right_ranks_above_a_damaged_picture(
    name: str, judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    damaged = DAMAGES[name](right, torch.Generator().manual_seed(1))
    ranked = judge.score(right, texts) > judge.score(damaged, texts)
    assert ranked.float().mean() >= 0.9


def test_shuffled_captions_are_rejected(
    judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    assert (judge.score(right.roll(1, 0), texts) > 0.5).float().mean() < 0.05


def test_a_score_does_not_depend_on_the_batch(
    judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    together = judge.score(right[:50], texts[:50])
    apart = torch.cat([judge.score(right[i : i + 1], texts[i : i + 1]) for i in range(10)])
    torch.testing.assert_close(together[:10], apart, atol=1e-5, rtol=1e-4)


def test_features_know_the_picture_alone_and_move_with_damage(
    judge: ShapesJudge, texts: list[str], right: Tensor
) -> None:
    features = judge.features(right)
    assert features.shape[0] == len(right)
    assert features.dtype == torch.float32
    again = render_batch([parse_caption(text) for text in texts], torch.Generator().manual_seed(9))
    same = (judge.features(again).mean(0) - features.mean(0)).norm()
    for damage in DAMAGES.values():
        damaged = judge.features(damage(right, torch.Generator().manual_seed(1)))
        assert (damaged.mean(0) - features.mean(0)).norm() > 2 * same


def test_other_sizes_and_unknown_captions_are_refused(judge: ShapesJudge) -> None:
    picture = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    with pytest.raises(RewardError, match="24 x 24"):
        judge.score(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["a red circle"])
    with pytest.raises(RewardError, match="24 x 24"):
        judge.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(RewardError, match="a photo of a dog"):
        judge.score(picture, ["a photo of a dog"])


@pytest.mark.parametrize("damage", ["no weights", "torn weights", "other format", "no config"])
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "judge"
    shutil.copytree(JUDGE_PATH, folder)
    weights, config = folder / "judge.safetensors", folder / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "other format":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"format": 99}))
    else:
        config.write_text("{}")
    with pytest.raises(RewardError, match="cannot be loaded"):
        load_judge(folder)


def test_construction_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__init__", None)  # no network can be made
    ShapesJudge()
    with pytest.raises(RewardError):
        load_judge()
