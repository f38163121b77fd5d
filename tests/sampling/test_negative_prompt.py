"""The negative prompt is encoded once and kept once, and nothing else changes by it."""

import diffusers
import pytest
import torch

from calibri.prompts.files import make_prompts
from calibri.sampling.encoding import make_encoder
from calibri.sampling.negative_prompt import NegativePrompt
from calibri.sampling.prompt_cache import PromptCache
from calibri.sampling.signatures import encoded_names, needs_texts, returns_both
from calibri.trees import size, tensors
from tests.sampling.pipelines import CASES

TEXTS = ["a red circle", "two blue squares", "one", "a red ring", "six cats", "in a row", "a", "no"]
PROMPTS = make_prompts(TEXTS)


def is_beside(case):
    pipe = object.__new__(getattr(diffusers, case.name))
    return not needs_texts(pipe) and returns_both(encoded_names(pipe))


BESIDE = [case for case in CASES if hasattr(diffusers, case.name) and is_beside(case)]

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")


def counted(pipe):
    """Count the texts that the text encoders of a pipeline are given."""
    seen = []
    for name in pipe.components:
        if name.startswith("text_encoder") and getattr(pipe, name) is not None:
            getattr(pipe, name).register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(args), with_kwargs=True
            )
    return seen


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        pairs = zip(tensors(one[name]), tensors(other[name]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name


def test_most_pipelines_return_the_negative_prompt_beside_every_prompt():
    assert len(BESIDE) >= 15


@pytest.mark.parametrize("case", BESIDE, ids=lambda case: case.id)
def test_each_prompt_is_encoded_as_if_it_were_the_only_one(case):
    pipe = case.build()
    encoder = make_encoder(pipe, "blurred and wrong")
    for prompt in PROMPTS:
        equal(
            encoder.arguments([prompt]), make_encoder(pipe, "blurred and wrong").arguments([prompt])
        )


@pytest.mark.parametrize("case", BESIDE, ids=lambda case: case.id)
def test_the_negative_prompt_is_encoded_as_often_as_it_takes_to_know_that_it_can_be_shared(case):
    pipe = case.build()
    encoders = sum(
        name.startswith("text_encoder") and part is not None
        for name, part in pipe.components.items()
    )
    seen = counted(pipe)
    cache = PromptCache()
    make_encoder(pipe, "blurred and wrong", cache).prepare(PROMPTS)
    # Each prompt; the negative one with the first two and with the first of another length; the
    # second prompt and that of another length once more to compare.
    most = encoders * (len(PROMPTS) + 3 + 2)
    assert len(seen) <= most


def split(text, given):
    """An ``encode_prompt`` that takes its own negative embeddings."""
    code = torch.tensor([[float(ord(letter)) for letter in text]])
    return {"embeds": code, "negative_embeds": given.get("negative_embeds", torch.ones(1, 3))}


def longer(text, given):
    """As some do, with a negative prompt as long as the prompt."""
    made = split(text, {})
    return made | {"negative_embeds": torch.ones(1, len(text))}


def stubborn(text, given):
    if given:
        raise TypeError("not twice")
    return split(text, given)


def careless(text, given):
    """One whose prompt comes out otherwise when the negative one is given."""
    made = split(text, given)
    return made | {"embeds": made["embeds"] + len(given)}


@pytest.mark.parametrize("encode", [split, longer, stubborn, careless])
@pytest.mark.parametrize("texts", [["abc", "xyz", "ab", "abcd", "qrs"], ["ab", "abc", "xyz"]])
def test_a_pipeline_that_cannot_share_it_does_not(encode, texts):
    calls = []

    def counting(text, given):
        calls.append(bool(given))
        return encode(text, given)

    negative = NegativePrompt(counting, {"prompt": 0, "negative_embeds": 0})
    for text in texts:
        equal({**encode(text, {})}, {**negative.shared, **negative.encoded(text)})
    assert calls.count(True) <= (len(texts) - 1 if encode is split else 2)
    kept = sum(size(negative.encoded(text)) for text in ["uvw", "uvx"])
    assert kept == (24 if encode is split and len(texts) == 5 else kept)


def test_it_is_not_given_to_an_encode_prompt_that_has_no_such_argument():
    negative = NegativePrompt(split, {"prompt": 0})
    assert [len(negative.encoded(text)) for text in ("abc", "xyz", "uvw")] == [2, 2, 2]
    negative = NegativePrompt(split, {"negative_embeds": 0})
    assert [len(negative.encoded(text)) for text in ("abc", "xyz", "uvw")] == [2, 2, 1]
