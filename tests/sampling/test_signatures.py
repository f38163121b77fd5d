"""Names of prompt embeddings, over every pipeline of diffusers."""

import ast
import inspect
import textwrap

import pytest

from calibri.errors import UnsupportedModelError
from calibri.sampling.signatures import call_arguments, encoded_names, named_outputs, returns_both
from tests.needs import of_diffusers

# Without the ending that all share.
IMAGE_PIPELINES = (
    "AuraFlow",
    "Bria",
    "Chroma",
    "CogView3Plus",
    "CogView4",
    "Cosmos2TextToImage",
    "Flux",
    "Flux2",
    "Flux2Klein",
    "FluxKontext",
    "HiDreamImage",
    "HunyuanDiT",
    "HunyuanImage",
    "Krea2",
    "Latte",
    "LongCatImage",
    "Lumina",
    "Lumina2",
    "OvisImage",
    "PRX",
    "PixArtAlpha",
    "PixArtSigma",
    "QwenImage",
    "Sana",
    "SanaSprint",
    "StableDiffusion3",
    "ZImage",
)


def pipeline(name):
    return object.__new__(of_diffusers(f"{name}Pipeline"))


@pytest.mark.parametrize("name", IMAGE_PIPELINES)
def test_the_embeddings_of_every_image_pipeline_are_known_by_name(name):
    pipe = pipeline(name)
    names, accepted = encoded_names(pipe), call_arguments(pipe)
    assert any("embeds" in part and part in accepted for part in names)


@pytest.mark.parametrize("name", IMAGE_PIPELINES)
def test_pipelines_that_encode_one_prompt_per_call_encode_the_negative_one_second(name):
    kind = type(pipeline(name))
    targets = [
        ast.unparse(node.targets[0]).lstrip("(")
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind.__call__))))
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "self.encode_prompt"
    ]
    if not returns_both(encoded_names(pipeline(name))):
        assert [target.startswith("negative_") for target in targets] in ([False], [False, True])
    assert targets


def test_outputs_that_are_missing_or_empty_have_no_name():
    names = ("prompt_embeds", "negative_prompt_embeds", "mask")
    assert named_outputs(names, ([1], [], None)) == {"prompt_embeds": [1]}


class Undocumented:
    def __call__(self):
        return None

    encode_prompt = len


def test_a_pipeline_whose_source_cannot_be_read_is_refused():
    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        encoded_names(Undocumented())
