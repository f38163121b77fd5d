import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from calibri.errors import ConfigError, RewardError
from calibri.rewards.registry import make_reward
from calibri.rewards.reward import BatchedReward, RewardInfo
from calibri.rewards.server.adapter import info_fields, score_function, serve_reward
from calibri.rewards.server.standalone import InputError


class Corner(BatchedReward):
    """The first pixel as one number, so that a swapped axis or channel shows."""

    info = RewardInfo("corner", "1", range=(0.0, float("inf")), unit="code")

    def score_batch(self, images, prompts):
        assert images.dtype == torch.uint8
        if "refused" in prompts:
            raise RewardError("not this one")
        return images[:, :, 0, -1].float() @ torch.tensor([1.0, 256.0, 65536.0])


def image(width, height, corner):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[0, -1] = corner
    return Image.fromarray(pixels)


def test_images_of_several_sizes_are_scored_in_order():
    images = [image(4, 3, (1, 0, 0)), image(2, 5, (0, 1, 0)), image(4, 3, (0, 0, 1))]
    assert score_function(Corner())(images, ["a"] * 3) == [1.0, 256.0, 65536.0]


def test_what_the_reward_refuses_is_the_clients_fault():
    with pytest.raises(InputError, match="not this one"):
        score_function(Corner())([image(2, 2, (0, 0, 0))], ["refused"])


def test_an_open_range_is_plain_json():
    fields = json.loads(json.dumps(info_fields(Corner.info), allow_nan=False))
    assert fields["range"] == [0.0, None]
    assert (fields["name"], fields["kind"]) == ("corner", "pointwise")


@pytest.mark.parametrize("reward", ["shapes", make_reward("shapes")])
def test_an_address_that_cannot_be_used_is_an_error_in_words(reward):
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*no token"):
        serve_reward(reward, "0.0.0.0", 0)


def test_a_name_or_an_option_that_no_reward_has_is_refused():
    with pytest.raises(RewardError, match="no-such"):
        serve_reward("no-such", port=0)
    with pytest.raises(RewardError, match="sharpness"):
        serve_reward("shapes", port=0, sharpness=1)


@pytest.mark.slow
def test_the_command_serves_a_reward_that_scores_as_in_this_process():
    program = "from calibri.cli.app import main; main()"
    command = [sys.executable, "-u", "-c", program, "serve-reward", "shapes", "--port", "0"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = child.stdout.readline()
        assert line.startswith("serving shapes (")
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (5, 3, 24, 24), generator=generator, dtype=torch.uint8)
        prompts = ["a large red circle"] * 5
        remote = make_reward("remote", url=line.split()[-1], batch_size=2)
        local = make_reward("shapes")
        found, wanted = remote.score(images, prompts), local.score(images, prompts)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0.0)
        assert remote.info.variant == f"shapes: {local.info.variant}"
        with pytest.raises(RewardError, match="status 422"):
            remote.score(images[:1], ["no caption at all"])
    finally:
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
    assert (child.returncode, output) == (0, "stopping\n"), errors
