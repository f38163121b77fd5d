"""Prompts are encoded once, whatever a pipeline wants to be called with."""

import inspect
from dataclasses import replace

import diffusers
import pytest
import torch

import calibri
from calibri.config import SamplingConfig
from calibri.errors import UnsupportedModelError
from calibri.prompts.files import make_prompts
from calibri.sampling.branches import BranchResolver
from calibri.sampling.encoding import TextsEncoder, make_encoder
from calibri.sampling.prompt_cache import PromptCache
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.sampling.signatures import (
    call_arguments,
    computed,
    needs_source,
    needs_texts,
    own_negative_prompt,
    passed_on,
)
from calibri.trees import alike
from tests.pipelines.zoo import ZOO
from tests.sampling.pipelines import CASES, Decoder, PipelineCase, TextEncoder, Tokenizer

PROMPTS = make_prompts(["a red circle", "two blue squares here", "one"])
NOISES = [Noise(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)]

# The Ernie pipeline gives its scheduler tensors where numpy 2 wants arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# What diffusers 0.42 has that takes words alone; a new one appears here by failing the test.
CALLED_WITH_TEXTS = {
    "AceStepPipeline",  # makes music
    "AmusedPipeline",
    "BriaFiboPipeline",
    "Cosmos3OmniPipeline",
    "ErnieImagePipeline",
    "GlmImagePipeline",  # makes prior tokens of the prompt too
    "HunyuanDiTPAGPipeline",
    "HunyuanDiTPipeline",
    "Ideogram4Pipeline",
    "Kandinsky5T2IPipeline",
    "Kandinsky5T2VPipeline",
    "LattePipeline",  # masks embeddings again that it is given
    "LongCatAudioDiTPipeline",
    "LongCatImagePipeline",  # has the prompt rewritten
    "OmniGenPipeline",
    "VQDiffusionPipeline",
}
_NOT_FROM_WORDS = ("Img2Img", "Inpaint", "Control", "Edit", "ToVideo", "ToAudio", "I2V", "Refiner")


def from_words():
    """Pipelines with a transformer that need nothing but a prompt."""
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if name.endswith("Pipeline") else None
        if not inspect.isclass(kind) or not issubclass(kind, diffusers.DiffusionPipeline):
            continue
        if "transformer" not in inspect.signature(kind.__init__).parameters:
            continue
        if any(part in name for part in _NOT_FROM_WORDS):
            continue
        pipe = object.__new__(kind)
        arguments = call_arguments(pipe)
        needed = {
            argument
            for argument, parameter in list(arguments.items())[1:]
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        }
        if "prompt" in arguments and needed <= {"prompt"}:
            yield name, pipe


@pytest.mark.slow
def test_the_pipelines_that_must_be_called_with_texts_are_the_known_ones():
    found = dict(from_words())
    assert len(found) > 60
    assert {name for name, pipe in found.items() if needs_texts(pipe)} == CALLED_WITH_TEXTS


# What calls compute and pass to encode_prompt, whose own default comes to the same for one prompt.
COMPUTED = {
    "device": "where the pipeline executes",
    "do_classifier_free_guidance": "said by Calibri",
    "negative_prompt": "said by Calibri",
    "prompt": "said by Calibri; rewritten only where a plain call does not",
    "lora_scale": "None without further arguments",
    "num_videos_per_prompt": "1",
    "batch_size": "1",
    "num_condition_images": "0 without an image",
    "image": "None without an image",
    "text_images": "None without an image",
    "max_sequence_length": "that of the loaded pipeline (NucleusMoE)",
    "dtype": "that of a text encoder in both (EasyAnimate)",
}


EDITING = [
    "QwenImageEditPipeline",
    "QwenImageEditPlusPipeline",
    "LongCatImageEditPipeline",
    "WanImageToVideoPipeline",
    "StableDiffusion3Img2ImgPipeline",
]


@pytest.mark.slow
def test_a_source_picture_is_needed_by_what_edits_alone():
    """A pipeline may take a picture as well (Qwen-Image 2.1, Bria Fibo 2, LTX's conditions)."""
    for name in EDITING:
        assert needs_source(object.__new__(getattr(diffusers, name))), name
    found = [name for name, pipe in from_words() if needs_source(pipe)]
    assert found == ["FluxFillPipeline"]  # whose signature does not tell


@pytest.mark.slow
def test_every_pipeline_of_diffusers_encodes_with_the_defaults_of_its_call():
    """Of 81 that need nothing but a prompt, 65 take embeddings and are checked here.

    The other 16 are called with texts, so that the pipeline itself passes on what it passes.
    """
    found = {name: pipe for name, pipe in from_words() if not needs_texts(pipe)}
    for name, pipe in found.items():
        own = inspect.signature(type(pipe).encode_prompt).parameters
        theirs, passed = call_arguments(pipe), passed_on(pipe)
        assert set(computed(pipe)) <= COMPUTED.keys(), name
        for key in own.keys() & theirs.keys() - {"self", "prompt", *computed(pipe)}:
            if own[key].default != theirs[key].default:
                assert passed[key] == theirs[key].default, (name, key)
    texts = {name for name, _ in from_words()} - found.keys()
    assert (len(found), len(texts)) == (65, len(CALLED_WITH_TEXTS))


OWN_NEGATIVE_PROMPTS = {
    "BriaFibo2Pipeline",
    "Cosmos2TextToImagePipeline",
    "Cosmos2VideoToWorldPipeline",
    "Cosmos2_5_PredictBasePipeline",
    "CosmosTextToWorldPipeline",
    "CosmosVideoToWorldPipeline",
    "Kandinsky5T2VPipeline",
}


@pytest.mark.slow
def test_the_pipelines_with_a_negative_prompt_of_their_own_are_the_known_ones():
    found = {name for name, pipe in from_words() if own_negative_prompt(pipe)}
    assert found == OWN_NEGATIVE_PROMPTS


HUNYUAN = PipelineCase(
    "HunyuanDiTPipeline",
    "HunyuanDiT2DModel",
    diffusers.DDIMScheduler,
    ((1, 0),),
    call=dict(height=16, width=16),
    parts=dict(
        tokenizer=Tokenizer(),
        tokenizer_2=Tokenizer(),
        text_encoder_2=TextEncoder(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ),
)


class OneText(Tokenizer):
    """Gives the tokens of one text as a plain list, as tokenizers do when no tensor is asked."""

    def __call__(self, text, **options):
        return {"input_ids": super().__call__(text).input_ids[0].tolist()}


class NormalisedDecoder(Decoder):
    bn = torch.nn.BatchNorm2d(4)


ERNIE = PipelineCase(
    "ErnieImagePipeline",
    "ErnieImageTransformer2DModel",
    diffusers.FlowMatchEulerDiscreteScheduler,
    ((1, 0),),
    call=dict(height=16, width=16),
    parts=dict(tokenizer=OneText()),
)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Let HunyuanDiT keep a size that it would round to a thousand pixels."""
    from diffusers.pipelines.hunyuandit import pipeline_hunyuandit

    monkeypatch.setattr(pipeline_hunyuandit, "SUPPORTED_SHAPE", [(16, 16)])


def sampler(case, scale=1.0, **config):
    size = dict(height=case.call["height"], width=case.call["width"])
    settings = SamplingConfig(
        num_inference_steps=2, negative_prompt="ugly", guidance_scale=scale, **size, **config
    )
    pipe = case.build(vae=NormalisedDecoder() if case is ERNIE else Decoder())
    if case is HUNYUAN:
        specimen = next(s for s in ZOO if s.model_class == case.transformer)
        lengths = dict(text_len=77, text_len_t5=256)
        pipe.transformer = replace(specimen, config=specimen.config | lengths).model()
    return Sampler(pipe, settings)


def plain(ours, noise):
    """One image of the stock pipeline, called with words."""
    config = ours.config
    image = ours.pipe(
        noise.prompt.text,
        negative_prompt=config.negative_prompt if config.guidance_scale > 1 else None,
        height=config.height,
        width=config.width,
        num_inference_steps=2,
        guidance_scale=config.guidance_scale,
        generator=torch.Generator().manual_seed(noise.seed),
        output_type="pt",
    ).images[0]
    return (image * 255).round()


@pytest.mark.parametrize("case", [HUNYUAN, ERNIE], ids=lambda case: case.id)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_are_the_images_of_the_stock_pipeline_called_with_their_prompt(case, scale):
    ours = sampler(case, scale)
    for noise, image in zip(NOISES, ours.sample(NOISES), strict=True):
        assert image.float().std() > 1
        assert (plain(ours, noise) - image).abs().max() <= 1


@pytest.mark.parametrize("case", [HUNYUAN, ERNIE], ids=lambda case: case.id)
def test_texts_are_encoded_once_for_a_pipeline_called_with_them(case):
    ours = sampler(case, 3.0)
    seen = []
    encoder = ours.pipe.text_encoder
    encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(1), with_kwargs=True)
    first = ours.sample(NOISES)
    count = len(seen)
    assert torch.equal(ours.sample([*NOISES[::-1]]), first.flip(0))
    ours.sample([Noise(PROMPTS[1], 5)])
    assert len(seen) == count > 0
    # The pipeline itself, called by others, encodes as it always did.
    plain(ours, NOISES[0])
    assert len(seen) > count


def test_prompts_that_were_prepared_are_encoded_with_the_first_batch():
    ours = sampler(HUNYUAN)
    ours.prepare(PROMPTS)
    seen = []
    ours.sample(NOISES[:1])
    ours.pipe.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(1))
    ours.sample(NOISES[1:2])
    ours.sample(NOISES[2:])
    assert not seen


class Lengths:
    """``encode_prompt`` with one answer for a whole batch, as Kandinsky's cumulative lengths."""

    def encode_prompt(self, prompt, negative_prompt=None):
        self.calls.append(list(prompt))
        lengths = torch.tensor([len(text) for text in prompt])
        return torch.ones(len(prompt), 3), lengths.cumsum(0)

    def __call__(self, prompt, negative_prompt=None):
        return self.encode_prompt(prompt, negative_prompt=negative_prompt)

    _execution_device = torch.device("cpu")
    components = {}
    hf_device_map = None


def test_answers_that_cannot_be_joined_are_remembered_for_whole_batches():
    pipe = Lengths()
    pipe.calls = []
    encoder = TextsEncoder(pipe, None, PromptCache())
    for prompts in (PROMPTS, PROMPTS, PROMPTS[::-1], PROMPTS):
        with encoder.answering():
            _, lengths = pipe(**encoder.arguments(prompts))
        assert lengths.tolist() == torch.tensor([len(p.text) for p in prompts]).cumsum(0).tolist()
    texts = [prompt.text for prompt in PROMPTS]
    assert pipe.calls.count(texts) == pipe.calls.count(texts[::-1]) == 1


def test_the_branches_of_guidance_are_known_for_a_pipeline_called_with_texts():
    ours = sampler(HUNYUAN, 3.0)
    expected = ours.sample(NOISES)
    resolver = BranchResolver(ours.pipe)
    ours.before_call = resolver.expect
    scaler = Scaler(ours.pipe.transformer, resolver)
    scales = torch.ones(3, 2, len(scaler.sites) + 1)
    scaler.set(scales)
    assert torch.equal(ours.sample(NOISES), expected)
    scales[1, 0] = 0.5
    scaler.set(scales)
    changed = ours.sample(NOISES)
    assert [torch.equal(a, b) for a, b in zip(changed, expected, strict=True)] == [
        True,
        False,
        True,
    ]


class Moving(TextEncoder):
    """Keeps a list of where it was sent, and whether it was away while it ran."""

    def __init__(self):
        super().__init__()
        self.places = []
        self.ran_at = []

    def to(self, device):
        self.places.append(str(device))
        return self

    def forward(self, *args, **kwargs):
        self.ran_at.append(len(self.places))
        return super().forward(*args, **kwargs)


def moving(name):
    case = HUNYUAN if name == "HunyuanDiT" else next(case for case in CASES if case.id == name)
    ours = sampler(case)
    ours.pipe.text_encoder = Moving()
    return ours, ours.pipe.text_encoder


@pytest.mark.parametrize("name", ["Flux", "HunyuanDiT"])
def test_encoders_visit_the_device_to_encode_and_leave_again(name, monkeypatch):
    ours, encoder = moving(name)
    expected = sampler(HUNYUAN if name == "HunyuanDiT" else next(r for r in CASES if r.id == name))
    monkeypatch.setattr(type(ours.pipe), "_execution_device", torch.device("cpu", 0))
    ours.offload_encoders()
    assert encoder.places == ["cpu"]
    ours.prepare(PROMPTS)
    images = ours.sample(NOISES)
    # HunyuanDiT encodes twice.
    visits = ["cpu:0", "cpu"] * (2 if name == "HunyuanDiT" else 1)
    assert encoder.places == ["cpu", *visits]
    assert set(encoder.ran_at) == {2}
    assert torch.equal(images, expected.sample(NOISES))
    ours.sample(NOISES)
    assert encoder.places == ["cpu", *visits]


def test_a_pipeline_without_a_prompt_is_refused():
    class LabelPipeline:
        def __call__(self, class_labels):
            return class_labels

    with pytest.raises(UnsupportedModelError, match="LabelPipeline is not called with a prompt"):
        Sampler(LabelPipeline(), SamplingConfig())


LENGTHS = [("Flux", 512), ("PixArtSigma", 300), ("Sana", 300), ("StableDiffusion3", 256)]


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "length"), LENGTHS)
def test_prompts_are_encoded_at_the_length_asked_for_and_kept_apart(name, length):
    case = next(case for case in CASES if case.id == name)
    encoder = make_encoder(case.build(), None)
    assert encoder.max_sequence_length == length
    whole = encoder.arguments(PROMPTS)
    short = encoder.arguments(PROMPTS, 6)
    assert encoder.tokens(PROMPTS[0]) - encoder.tokens(PROMPTS[0], 6) == length - 6
    assert not all(alike(whole[key], short[key]) for key in whole if "embeds" in key)
    again = encoder.arguments(PROMPTS)
    assert all(alike(whole[key], again[key]) for key in whole if "embeds" in key)


def test_a_pipeline_that_takes_texts_is_told_the_length():
    pipe = HUNYUAN.build(vae=Decoder())
    encoder = make_encoder(pipe, None)
    assert "max_sequence_length" not in encoder.arguments(PROMPTS)
    assert encoder.arguments(PROMPTS, 4)["max_sequence_length"] == 4
    assert encoder.max_sequence_length is None  # its call takes none


@pytest.mark.parametrize("case", [HUNYUAN, ERNIE], ids=lambda case: case.id)
def test_a_pipeline_is_as_it_was_once_nobody_samples_from_it(case):
    first = sampler(case)
    pipe = first.pipe
    inside = pipe.encode_prompt
    second = Sampler(pipe, first.config)
    second.remove()
    assert pipe.encode_prompt == inside
    first.remove()
    assert "encode_prompt" not in vars(pipe)
    calibri.inspect(pipe)
    assert "encode_prompt" not in vars(pipe)
    pipe.encode_prompt = type(pipe).encode_prompt.__get__(pipe)  # somebody's own
    own = pipe.encode_prompt
    Sampler(pipe, first.config).remove()
    assert pipe.encode_prompt is own
