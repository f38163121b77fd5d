import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards import qalign
from calibri.rewards.mplug_owl2 import MPlugOwl2, OwlSizes
from calibri.rewards.qalign import QAlignAesthetics, QAlignReward, question
from calibri.rewards.weights import Checkpoint
from tests.rewards.differentiable import check_differentiable
from tests.rewards.mplug_owl2_oracle import Oracle, Sizes, checkpoint

SIZES = Sizes()
LEVELS = [15129, 1781, 6534, 6460, 4319]
LLAMA_PIECES = dict(
    [(1, ""), (3148, " US"), (1001, "ER"), (29901, ":"), (1128, " How"), (723, " would")]
    + [(366, " you"), (6554, " rate"), (278, " the"), (11029, " quality"), (310, " of")]
    + [(445, " this"), (1967, " image"), (29973, "?"), (13, "\n"), (29871, " "), (22933, "ASS")]
    + [(9047, "IST"), (13566, "ANT"), (450, " The"), (338, " is")]
    + [(263, " a"), (342, "est"), (9188, "het"), (1199, "ics")]
)


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> Path:
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reward_in(folder: Path, cls: type[QAlignReward] = QAlignReward) -> QAlignReward:
    return cls(Checkpoint("none", folder=folder))


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return checkpoint(SIZES, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> Path:
    return save(tmp_path_factory.mktemp("qalign"), tensors, SIZES.config())


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (3, 3, 30, 45), generator=generator, dtype=torch.uint8)


def preprocessed(image: Tensor) -> Tensor:
    """Centred on a square of CLIP's mean colour, bicubic to the network's side, normalised."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    side = max(picture.size)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    square = square.resize((SIZES.image, SIZES.image), Image.Resampling.BICUBIC)
    flat = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8)
    pixels = flat.view(SIZES.image, SIZES.image, 3).permute(2, 0, 1).double() / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().view(3, 1, 1)
    return (pixels - mean) / std


def expected(tensors: dict[str, Tensor], images: Tensor, task: str) -> Tensor:
    before, after = question(task)
    oracle = Oracle(tensors, SIZES)
    logits = [oracle(preprocessed(x), list(before), list(after), LEVELS) for x in images]
    return torch.stack([x.softmax(-1) @ torch.tensor([5, 4, 3, 2, 1]).double() for x in logits])


@pytest.mark.parametrize("cls", [QAlignReward, QAlignAesthetics])
def test_scores_are_those_of_the_oracle_on_the_original_keys(cls, folder, tensors, images):
    scores = reward_in(folder, cls).score(images, ["ignored"] * 3)
    oracle = expected(tensors, images, cls.task)
    assert oracle.std() > 1e-2
    torch.testing.assert_close(scores.double(), oracle, atol=2e-5, rtol=0)


def test_the_two_tasks_and_no_prompt_change_the_score(folder, images):
    quality = reward_in(folder)
    scores = quality.score(images, ["a"] * 3)
    assert torch.equal(quality.score(images, ["b", "c", "d"]), scores)
    aesthetics = reward_in(folder, QAlignAesthetics).score(images, ["a"] * 3)
    assert (aesthetics - scores).abs().max() > 1e-3


@pytest.mark.parametrize("task", ["quality", "aesthetics"])
def test_question_has_one_beginning_and_the_published_words(task):
    before, after = question(task)
    text = ["".join(LLAMA_PIECES[i] for i in ids) for ids in (before, after)]
    # A leading space is the vocabulary's word boundary; each part is tokenised on its own.
    assert text[0] == f" USER: How would you rate the {task} of this image?\n"
    assert text[1] == f" \nASSISTANT: The {task} of the image is"
    assert before[0] == 1
    assert (*before, *after).count(1) == 1


def test_a_second_beginning_gives_another_score(folder, images, monkeypatch):
    reward = reward_in(folder)
    right = reward.score(images, [""] * 3)
    before, after = question("quality")
    monkeypatch.setattr(qalign, "question", lambda task: (before, (1, *after)))
    assert (reward.score(images, [""] * 3) - right).abs().max() > 1e-3


def test_scale_runs_from_one_to_five(tmp_path, tensors, images):
    for level, score in zip([None, *LEVELS], [3.0, 5.0, 4.0, 3.0, 2.0, 1.0], strict=True):
        # A head that says the same whatever it sees: equal logits, or one far above the others.
        head = torch.zeros_like(tensors["lm_head.weight"])
        norm = {"model.norm.weight": torch.zeros_like(tensors["model.norm.weight"])}
        reward = reward_in(
            save(tmp_path, tensors | norm | {"lm_head.weight": head}, SIZES.config())
        )
        if level is not None:
            network = reward.model
            network.norm.register_forward_hook(lambda *_: torch.ones(3, SIZES.hidden))
            network.lm_head.weight[level] = 100.0
        assert reward.score(images, [""] * 3).tolist() == pytest.approx([score] * 3)


def test_sides_of_an_image_are_padded_not_cropped(folder, images):
    reward = reward_in(folder)
    changed = images.clone()
    changed[:, :, :, :7] = 255
    assert (reward.score(changed, [""] * 3) - reward.score(images, [""] * 3)).abs().min() > 1e-4


def test_legacy_shards_converted_one_by_one_load_too(tmp_path, folder, tensors, images):
    (tmp_path / "config.json").write_text(json.dumps(SIZES.config()))
    names = sorted(tensors)
    parts = {"pytorch_model-1-of-2.bin": names[::2], "pytorch_model-2-of-2.bin": names[1::2]}
    weight_map = {name: part for part, members in parts.items() for name in members}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for part, members in parts.items():
        converted = (tmp_path / part).with_suffix(".safetensors")
        save_file({name: tensors[name] for name in members}, converted)
    scores = reward_in(tmp_path).score(images, [""] * 3)
    assert torch.equal(scores, reward_in(folder).score(images, [""] * 3))


def test_stored_rotary_frequencies_are_left_out(tmp_path, folder, tensors, images):
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    scores = reward_in(save(tmp_path, tensors | extra, SIZES.config())).score(images, [""] * 3)
    assert torch.equal(scores, reward_in(folder).score(images, [""] * 3))


@pytest.mark.parametrize(
    "lost", ["lm_head.weight", "model.layers.1.self_attn.v_proj.multiway.1.weight"]
)
def test_incomplete_checkpoint_is_refused(tmp_path, tensors, lost):
    kept = {name: value for name, value in tensors.items() if name != lost}
    with pytest.raises(RewardError, match="1 keys missing"):
        _ = reward_in(save(tmp_path, kept, SIZES.config())).model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual_config": None}, "not one of mPLUG-Owl2"),
        ({"rms_norm_eps": "small"}, "'rms_norm_eps' is missing or no number"),
        ({"vocab_size": 50000}, "has 50000"),
    ],
)
def test_other_configurations_are_refused(tmp_path, tensors, change, message):
    with pytest.raises(RewardError, match=message):
        _ = reward_in(save(tmp_path, tensors, SIZES.config() | change)).model


def test_published_sizes():
    with torch.device("meta"):
        network = MPlugOwl2(OwlSizes())
    second_copies = 32 * (2 * 4096**2 + 2 * 4096)
    vision = 24 * (4 * 1024**2 + 2 * 4096 * 1024 + 4096 + 9 * 1024) + 5 * 1024
    vision += 3 * 14**2 * 1024 + 1025 * 1024
    layer = 4 * (1024**2 + 1024) + 3 * 1024 * 2816 + 4 * 2816 + 1024 + 6 * 1024
    abstractor = 6 * layer + 64 * 1024 + 1024 * 4096 + 2 * 4096
    llama_2_7b = 6_738_415_616
    counted = sum(p.numel() for p in network.parameters())
    assert counted == llama_2_7b + second_copies + vision + abstractor
    assert round(2 * counted / 1e9, 1) == 16.4


@pytest.mark.parametrize("cls", [QAlignReward, QAlignAesthetics])
def test_it_scores_floats_with_a_gradient(cls, folder):
    check_differentiable(reward_in(folder, cls), [""] * 2)
