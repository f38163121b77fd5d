"""Videos: frames for rewards, sampled by real pipelines, written to files."""

import pytest
import torch
from PIL import Image

from calibri.artifact.compare import compare
from calibri.cli.generate import save
from calibri.coefficients.coefficients import Coefficients
from calibri.config import SamplingConfig
from calibri.errors import ConfigError
from calibri.prompts.files import make_prompts
from calibri.runs.comparison import film_strip
from calibri.sampling.frames import evenly_spaced
from calibri.sampling.sampler import Noise, Sampler
from calibri.sampling.scales.scaler import Scaler
from calibri.scoring.frames import mean_over_frames
from calibri.scoring.image_sets import diversity
from tests.sampling.pipelines import CASES
from tests.sampling.videos import VIDEOS, video_pipeline, video_size
from tests.tiny import calibration_of

PROMPTS = make_prompts(["a red circle", "two blue squares here"])
NOISES = [Noise(prompt, 10 + i) for i, prompt in enumerate(PROMPTS)]


videos = pytest.mark.parametrize("name", VIDEOS)


def sampler(name, **settings):
    config = SamplingConfig(num_inference_steps=2, **video_size(name), **settings)
    return Sampler(video_pipeline(name), config)


def plain(pipe, name, noise, scale=1.0):
    """All frames of the stock pipeline, called with words."""
    return pipe(
        noise.prompt.text,
        **video_size(name),
        num_inference_steps=2,
        guidance_scale=scale,
        negative_prompt="ugly" if scale > 1 else None,
        generator=torch.Generator().manual_seed(noise.seed),
        output_type="pt",
    ).frames[0]


@videos
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_videos_are_frames_of_the_stock_pipeline_called_with_their_prompt(name, scale):
    ours = sampler(name, guidance_scale=scale, negative_prompt="ugly")
    found = ours.sample(NOISES)
    assert found.dtype == torch.uint8
    # Both make 5 frames, of which 4 are taken: the one before the middle is not the middle.
    assert found.shape[:3] == (2, 4, 3)
    for noise, video in zip(NOISES, found, strict=True):
        expected = (plain(ours.pipe, name, noise, scale)[[0, 1, 3, 4]] * 255).round()
        assert expected.std(dim=0).max() > 1
        assert (expected - video).abs().max() <= 1


@pytest.mark.parametrize(
    ("count", "indices"),
    [(1, [4]), (2, [0, 8]), (3, [0, 4, 8]), (4, [0, 3, 5, 8]), (20, list(range(9)))],
)
def test_frames_are_evenly_spaced_from_the_first_to_the_last(count, indices):
    frames = torch.arange(9.0).view(1, 9, 1, 1, 1).expand(2, 9, 3, 2, 2)
    assert evenly_spaced(frames, count)[1, :, 0, 0, 0].tolist() == indices


def brightness(images, prompts):
    assert images.ndim == 4
    assert len(images) == len(prompts)
    return images.float().mean(dim=(1, 2, 3)) + torch.tensor([float(len(p)) for p in prompts])


def test_the_score_of_a_video_is_the_mean_over_its_frames():
    generator = torch.Generator().manual_seed(0)
    found = torch.randint(0, 256, (3, 5, 3, 4, 6), generator=generator, dtype=torch.uint8)
    prompts = ["a", "bb", "cccc"]
    measure = mean_over_frames(brightness)
    expected = found.float().mean(dim=(1, 2, 3, 4)) + torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close(measure(found, prompts), expected)
    images = found[:, 0]
    assert torch.equal(measure(images, prompts), brightness(images, prompts))


def test_a_frame_that_failed_leaves_its_video_without_a_score():
    def failing(images, prompts):
        scores = images.float().mean(dim=(1, 2, 3))
        return torch.where(scores > 250, torch.nan, scores)

    found = torch.zeros(2, 3, 3, 2, 2, dtype=torch.uint8)
    found[1, 2] = 255
    assert mean_over_frames(failing)(found, ["a", "a"]).isnan().tolist() == [False, True]


def test_diversity_compares_videos_at_the_same_moment():
    moving = torch.zeros(2, 2, 3, 4, 4, dtype=torch.uint8)
    moving[:, 1] = 255
    assert mean_over_frames(diversity)(moving, ["a", "a"]).tolist() == [0, 0]
    moving[1] = 255 - moving[1]
    assert mean_over_frames(diversity)(moving, ["a", "a"]).tolist() == [1, 1]


def test_a_film_strip_shows_the_frames_side_by_side():
    found = torch.randint(0, 256, (2, 3, 3, 4, 5), dtype=torch.uint8)
    strip = film_strip(found)
    assert strip.shape == (2, 3, 4, 15)
    assert torch.equal(strip[1, :, :, 5:10], found[1, 1])
    assert torch.equal(film_strip(found[:, 0]), found[:, 0])


def test_frames_of_an_image_pipeline_are_refused():
    case = next(case for case in CASES if case.id == "QwenImage")
    with pytest.raises(ConfigError, match=r"makes images.*num_frames"):
        Sampler(case.build(), SamplingConfig(num_frames=9))


def calibration(pipe, name):
    sites = Scaler(pipe.transformer).sites
    coefficients = Coefficients(
        granularity="gate",
        scales=({site.name: 0.5 for site in sites},),
        output_weights=(1.0,),
        start_weights=(1.0,),
    )
    return calibration_of(pipe.transformer, coefficients, num_inference_steps=2, **video_size(name))


@videos
def test_generated_videos_are_written_as_animations(name, tmp_path, capsys):
    pipe = video_pipeline(name)
    frames = compare(pipe, calibration(pipe, name), "a red circle")
    assert len(frames) == 5
    # Original and calibrated side by side, with a gap.
    assert frames[0].width > 2 * video_size(name)["width"] // pipe.vae.shrink
    save(frames, tmp_path / "video.png", enlarge=False)
    with Image.open(tmp_path / "video.webp") as written:
        assert written.n_frames == len(frames)
        assert written.size == frames[0].size
    save(frames, tmp_path / "video.gif", enlarge=False)
    with Image.open(tmp_path / "video.gif") as written:
        assert written.is_animated
