import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import Qwen2Tokenizer

from calibri.errors import RewardError
from calibri.rewards.hpsv3 import HPSv3Reward, patches, pixel_values, target_size
from calibri.rewards.hpsv3_network import HPSv3Network, published_config, rename
from calibri.rewards.hpsv3_prompt import REWARD_TOKEN, escape, instruction, render
from calibri.rewards.weights import Checkpoint
from tests.needs import is_older, needs
from tests.rewards.differentiable import check_differentiable
from tests.rewards.qwen2vl_oracle import Oracle, Sizes, checkpoint

SIZES = Sizes()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>"]
PROMPTS = ["a red cube", "two green spheres on a wooden table, {braces} and a zebra"]


def save_tokenizer(folder: Path) -> None:
    """A byte-level vocabulary of 500 pieces, of the kind Qwen2-VL has."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator([instruction()], trainer)
    if is_older("transformers", "5.0"):  # whose tokenizers are made from files
        pieces.model.save(str(folder))
        files = [str(folder / name) for name in ("vocab.json", "merges.txt")]
        trained = Qwen2Tokenizer(*files)
    else:
        trained = Qwen2Tokenizer(vocab=pieces.get_vocab(), merges=merges(pieces))
    trained.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    trained.save_pretrained(folder)


def merges(pieces: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(pieces.to_str())["model"]["merges"]]


def reward_in(folder: Path, **options: object) -> HPSv3Reward:
    return HPSv3Reward(Checkpoint("none", folder=folder), config=SIZES.config, **options)


IDS: dict[str, int] = {}  # of the special tokens, filled when the tokenizer is made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hpsv3")
    save_tokenizer(path)
    tokenizer = HPSv3Reward(Checkpoint("none", folder=path)).tokenizer
    IDS.update(tokenizer.get_added_vocab())
    save_file(checkpoint(SIZES, len(tokenizer), seed=1), path / "HPSv3.safetensors")
    return path


@pytest.fixture(scope="module")
def tensors(folder: Path) -> dict[str, Tensor]:
    return checkpoint(SIZES, max(IDS.values()) + 1, seed=1)


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (2, 3, 40, 64), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def reward(folder: Path) -> HPSv3Reward:
    return reward_in(folder)


@pytest.fixture(scope="module")
def scores(reward: HPSv3Reward, images: Tensor) -> Tensor:
    return reward.score(images, PROMPTS)


def conversation(reward: HPSv3Reward, prompt: str, image_tokens: int) -> list[int]:
    """The whole conversation as the chat template of Qwen2-VL writes it, nothing cut off."""
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{'<|image_pad|>' * image_tokens}<|vision_end|>"
        f"{instruction().replace('{text_prompt}', prompt)}<|im_end|>\n<|im_start|>assistant\n"
    )
    return reward.tokenizer(text)["input_ids"]


def expected(reward: HPSv3Reward, tensors: dict[str, Tensor], image: Tensor, prompt: str) -> float:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    height, width = target_size(picture.height, picture.width)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    ids = conversation(reward, prompt, height * width // 28**2)
    return Oracle(tensors, SIZES)(picture, ids, IDS["<|image_pad|>"], IDS[REWARD_TOKEN])


def test_score_is_that_of_the_oracle_on_the_original_checkpoint(reward, tensors, images, scores):
    oracle = [expected(reward, tensors, i, p) for i, p in zip(images, PROMPTS, strict=True)]
    assert abs(oracle[0] - oracle[1]) > 1e-2
    torch.testing.assert_close(scores.double(), torch.tensor(oracle).double(), atol=2e-5, rtol=0)


def test_newer_key_layout_loads_to_the_same_score(tmp_path, tensors, images, scores):
    renamed = {}
    for key, value in tensors.items():
        if key.startswith("visual."):
            key = "model." + key
        elif key.startswith("model."):
            key = key.replace("model.", "model.language_model.")
        renamed[key] = value
    save_tokenizer(tmp_path)
    save_file(renamed, tmp_path / "HPSv3.safetensors")
    assert torch.equal(reward_in(tmp_path).score(images, PROMPTS), scores)


@needs(transformers="5.0")  # the former one finds the places of text and picture itself
def test_mrope_positions_give_another_score(reward, images, scores):
    flat, grids = patches(pixel_values(images[:1]))
    ids = reward.tokens(PROMPTS[0], int(grids.prod()) // 4)[None]
    types = (ids == IDS["<|image_pad|>"]).int()
    with torch.inference_mode():
        hidden = reward.model.backbone(
            input_ids=ids, pixel_values=flat, image_grid_thw=grids, mm_token_type_ids=types
        ).last_hidden_state
        naive = reward.model.rm_head(hidden[0, -1])[0]
    assert abs(naive - scores[0]) > 1e-2


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((512, 512), (448, 448)),
        ((1024, 1024), (448, 448)),
        ((1328, 1328), (448, 448)),
        ((768, 768), (420, 420)),
        ((720, 1280), (336, 588)),
        ((832, 1216), (364, 532)),
        ((1024, 768), (504, 364)),
    ],
)
def test_target_sizes_are_the_published_ones(size, seen):
    assert target_size(*size) == seen


@settings(deadline=None)
@given(st.integers(16, 3000), st.integers(16, 3000))
def test_target_sizes_are_near_the_pixel_budget(height, width):
    sides = target_size(height, width)
    assert all(side % 28 == 0 and side >= 28 for side in sides)
    scale = (200704 / (height * width)) ** 0.5
    near = [abs(a - b * scale) <= 28 + 1e-6 for a, b in zip(sides, (height, width), strict=True)]
    assert sides[0] * sides[1] == 200704 or all(near)
    assert target_size(width, height) == sides[::-1]


def test_extreme_aspect_is_refused_in_plain_words():
    with pytest.raises(RewardError, match="one side may be at most 200 times the other"):
        target_size(10, 2001)


def test_instruction_is_the_one_of_training(tmp_path):
    text = instruction()
    assert (len(text), text.count("{text_prompt}"), text.count(REWARD_TOKEN)) == (2590, 1, 1)
    assert hashlib.sha256(text.encode()).hexdigest().startswith("f6ee57479d4e9eee76b49c00dc962e1e")
    (tmp_path / "stripped.txt").write_text(text.replace("  \n", "\n"))
    with pytest.raises(RewardError, match="exact text"):
        instruction(tmp_path / "stripped.txt")


@pytest.mark.parametrize("literal", ["<|Reward|>", "<|image_pad|>", "<|im_end|>", "<|endoftext|>"])
def test_special_token_literals_in_prompts_are_plain_text(reward, literal):
    hostile = f"a cube {literal} and {literal}{literal}"
    ids = reward.tokens(hostile, 4).tolist()
    honest = reward.tokens("a cube", 4).tolist()
    assert [ids.count(i) for i in IDS.values()] == [honest.count(i) for i in IDS.values()]
    assert ids[-1] == IDS[REWARD_TOKEN]
    assert f"< {literal[1:]}" in reward.tokenizer.decode(ids)


@settings(deadline=None)
@given(st.text("<|>Reward_pim ", max_size=60))
def test_escaped_prompts_hold_no_literal(text):
    literals = ["<|Reward|>", "<|image_pad|>", "<|"]
    assert not any(literal in escape(text, literals) for literal in literals)
    assert escape("plain {text}", literals) == "plain {text}"


def test_unescaped_reward_token_is_refused(reward, monkeypatch):
    monkeypatch.setattr(
        "calibri.rewards.hpsv3.render", lambda *args: render(*args).replace("cube", REWARD_TOKEN)
    )
    with pytest.raises(RewardError, match=r"found 2 tokens <\|Reward\|> instead of 1"):
        reward.tokens("a cube", 4)


def test_text_after_the_reward_token_changes_nothing(reward, images, scores):
    flat, grids = patches(pixel_values(images[:1]))
    whole = torch.tensor([conversation(reward, PROMPTS[0], int(grids.prod()) // 4)])
    length = whole[0].tolist().index(IDS[REWARD_TOKEN]) + 1
    assert length < whole.shape[1]
    assert torch.equal(whole[0, :length], reward.tokens(PROMPTS[0], int(grids.prod()) // 4))
    with torch.inference_mode():
        score = reward.model(whole, torch.tensor([length]), flat, grids)[0, 0]
    assert abs(score - scores[0]) < 2e-5


def test_batch_mates_do_not_change_a_score(reward, images, scores):
    alone = [reward.score(images[i : i + 1], [PROMPTS[i]]) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), scores, atol=2e-5, rtol=0)


def test_patches_are_those_of_the_published_processor(images):
    flat, grids = patches(pixel_values(images))
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    size = dict(size=dict(shortest_edge=200704, longest_edge=200704))
    if is_older("transformers", "5.0"):  # which takes the limits by their former names alone
        size = dict(min_pixels=200704, max_pixels=200704)
    # transformers 5 has it beside one for tensors, under a name that says so.
    processor = getattr(
        transformers, "Qwen2VLImageProcessorPil", transformers.Qwen2VLImageProcessor
    )
    published = processor(**size)(pictures, return_tensors="pt")
    assert torch.equal(grids, published["image_grid_thw"])
    torch.testing.assert_close(flat, published["pixel_values"], atol=1e-6, rtol=0)


def test_bfloat16_leaves_head_and_rotary_frequencies_exact(folder, tensors, images, scores):
    half = reward_in(folder, dtype=torch.bfloat16)
    network = half.model
    assert torch.equal(network.rm_head[0].weight, tensors["rm_head.0.weight"])
    for rotary in (
        network.backbone.language_model.rotary_emb,
        network.backbone.visual.rotary_pos_emb,
    ):
        assert rotary.inv_freq.dtype == torch.float32
    assert network.backbone.language_model.norm.weight.dtype == torch.bfloat16
    torch.testing.assert_close(half.score(images, PROMPTS), scores, atol=0.15, rtol=0)


def test_incomplete_checkpoint_is_refused(tmp_path, tensors):
    save_tokenizer(tmp_path)
    broken = {key: value for key, value in tensors.items() if key != "rm_head.5.bias"}
    save_file(broken, tmp_path / "HPSv3.safetensors")
    with pytest.raises(RewardError, match="1 keys missing"):
        _ = reward_in(tmp_path).model


def test_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    save_tokenizer(tmp_path)
    save_file(checkpoint(SIZES, 700, seed=1), tmp_path / "HPSv3.safetensors")
    with pytest.raises(RewardError, match="knows 700 tokens, the tokenizer"):
        _ = reward_in(tmp_path).model


def test_published_sizes_are_those_of_qwen2_vl_7b():
    with torch.device("meta"):
        network = HPSv3Network(published_config(152064), torch.bfloat16)
    backbone = sum(p.numel() for p in network.backbone.parameters())
    assert backbone + 152064 * 3584 == 16_582_751_232 // 2  # bytes of the published bfloat16 files
    assert rename("lm_head.weight") is None


def test_it_scores_floats_with_a_gradient(reward):
    check_differentiable(reward, PROMPTS)
