"""What reaches the transformer under a sampler is what a plain call of the pipeline sends."""

import sys

import pytest
import torch

from calibri.config import SamplingConfig
from calibri.pipelines.networks import networks_of
from calibri.prompts.files import make_prompts
from calibri.sampling.sampler import Noise, Sampler
from tests.needs import of_diffusers
from tests.sampling.pipelines import CASES
from tests.sampling.transformer_calls import differing, sent

# Long enough to be cut, with what cleaning and templates change.
PROMPT = make_prompts(["A <b>red</b> circle &amp; two BLUE squares (here), www.example.com"])[0]

pytestmark = [
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture
def cleaned(case, monkeypatch):
    """Let pipelines clean captions as they do beside bs4 and ftfy, which need not be installed."""
    kind = of_diffusers(case.name)
    if hasattr(kind, "_clean_caption"):
        module = sys.modules[kind.__module__]
        for name in ("is_bs4_available", "is_ftfy_available"):
            monkeypatch.setattr(module, name, lambda: True)
        monkeypatch.setattr(kind, "_clean_caption", lambda self, caption: caption.upper())


@pytest.mark.usefixtures("cleaned")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("negative", ["unguided", None, "", "ugly, blurred"])
def test_one_prompt_reaches_the_transformer_as_in_a_plain_call(case, negative):
    guided = negative != "unguided"
    guidance = {case.guidance: 3.0 if guided else 1.0 - case.offset}
    text = negative if guided else None
    size = {name: case.call[name] for name in ("height", "width")}
    frames = {name: case.call[name] for name in ("num_frames", "video_length") if name in case.call}
    config = SamplingConfig(
        num_inference_steps=3,
        negative_prompt=text,
        num_frames=next(iter(frames.values()), None),
        **size,
        **guidance,
    )
    sampler = Sampler(case.build(), config)
    calls = len(case.rows) if guided else 1
    ours = sent(sampler.pipe, calls, lambda: sampler.sample([Noise(PROMPT, 5)]))

    pipe = case.build()
    words = dict(num_inference_steps=3, generator=torch.Generator().manual_seed(5))
    if networks_of(pipe)[0].embeds_guidance:
        guidance = {"guidance_scale": 1.0} | guidance
    if text is not None or (guided and case.guidance == "true_cfg_scale"):
        # Without one these pipelines run no guidance.
        words["negative_prompt"] = text or ""
    plain = sent(pipe, calls, lambda: pipe(PROMPT.text, **size, **frames, **guidance, **words))
    assert differing(ours, plain) == []
