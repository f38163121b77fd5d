import contextlib
import http.server
import json
import socket
import threading
import time

import pytest
import torch

from calibri.errors import RewardError
from calibri.rewards.registry import make_reward
from calibri.rewards.remote import RemoteReward
from calibri.rewards.reward import BatchedReward, Reward, RewardInfo
from calibri.rewards.server.adapter import info_fields, score_function
from calibri.rewards.servers import Rests
from tests.rewards.server.serving import serving as server_of

INFO = {"name": "brightness", "variant": "1", "range": [0, None], "unit": "mean"}


class Brightness(BatchedReward):
    info = RewardInfo("brightness", "1", range=(0.0, 255.0), unit="mean", license="none")

    def __init__(self, kind="pointwise"):
        super().__init__()
        self.calls = []
        self.info = RewardInfo("brightness", "1", unit="mean", kind=kind)

    def score_batch(self, images, prompts):
        self.calls.append(list(prompts))
        scores = images.float().mean((1, 2, 3))
        return torch.where(scores > 254, torch.nan, scores)


def pictures(count, size=(5, 4)):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def expected(images):
    return images.float().mean((1, 2, 3))


def serving(reward=None, **options):
    reward = reward or Brightness()
    info = info_fields(reward.info) | options.pop("info", {})
    return server_of(score_function(reward), info, **options)


class Script(http.server.BaseHTTPRequestHandler):
    """Plays its server's list of faults, one for each POST, then answers properly."""

    def do_GET(self):
        self.reply(200, {"info": self.server.info, "limits": {"images": 4, "pixels": 10**6}})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts += 1
        fault = self.server.faults.pop(0) if self.server.faults else "good"
        getattr(self, f"play_{fault}" if isinstance(fault, str) else "play_status")(fault)

    def play_status(self, status):
        self.reply(status, {"error": "as you wished"}, **{"Retry-After": "0"})

    def play_good(self, _, **changes):
        reply = {"scores": [7.0], "info": self.server.info} | changes
        self.reply(200, reply)

    def play_half(self, _):
        data = json.dumps({"scores": [7.0], "info": self.server.info}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])

    def play_nothing(self, _):
        self.close_connection = True

    def play_slow(self, _):
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):  # far beyond the client's patience
                self.wfile.write(b" ")
                time.sleep(0.05)
        except OSError:
            self.server.hung_up += 1

    def play_text(self, _):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>no json</html>")

    def play_list(self, _):
        self.reply(200, [1])

    def play_few(self, _):
        self.play_good(None, scores=[])

    def play_strings(self, _):
        self.play_good(None, scores=["7"])

    def play_nan(self, _):
        self.play_good(None, scores=[float("nan")])

    def play_long(self, _):
        self.play_good(None, scores=[10**400])

    def play_true(self, _):
        self.play_good(None, scores=[True])

    def play_other(self, _):
        self.play_good(None, info=self.server.info | {"variant": "2"})

    def play_redirect(self, _):
        self.reply(302, {}, Location="http://127.0.0.1:1/")

    def reply(self, status, data, **headers):
        body = json.dumps(data).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def playing(*faults, info=INFO):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Script)
    server.faults, server.info, server.posts, server.hung_up = list(faults), info, 0, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_scores_equal_those_of_the_reward_in_this_process_bit_for_bit():
    images = pictures(23, size=(17, 9))
    with serving() as server:
        reward = RemoteReward(server.url, batch_size=4)
        scores = reward.score(images, ["x"] * 23)
    assert isinstance(reward, Reward)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, Brightness().score(images, ["x"] * 23))


def test_info_is_that_of_the_server():
    with serving() as server:
        info = RemoteReward(server.url).info
    assert (info.name, info.variant) == ("remote", "brightness: 1")
    assert (info.range, info.unit) == ((-float("inf"), float("inf")), "mean")


def test_making_it_asks_nobody():
    reward = make_reward("remote", url="http://127.0.0.1:1")
    with pytest.raises(RewardError, match="No reward server answered GET /v1/info"):
        _ = reward.info


def test_no_images_ask_nobody_twice():
    with serving() as server:
        assert RemoteReward(server.url).score(pictures(0), []).shape == (0,)


def test_failed_images_are_nan():
    images = pictures(3)
    images[1] = 255
    with serving() as server:
        assert RemoteReward(server.url).score(images, ["x"] * 3).isnan().tolist() == [0, 1, 0]


@pytest.mark.parametrize("limits", [{"images": 3}, {"pixels": 60}])
def test_requests_respect_the_servers_limits(limits):
    reward = Brightness()
    with serving(reward, limits=limits, merge=False) as server:
        scores = RemoteReward(server.url, batch_size=50).score(pictures(8), ["x"] * 8)
    assert torch.equal(scores, expected(pictures(8)))
    assert sorted(map(len, reward.calls)) == [2, 3, 3]


def test_the_images_of_a_prompt_stay_together_where_they_are_compared():
    reward = Brightness(kind="groupwise")
    prompts = ["a", "b", "a", "b", "b"]
    with serving(reward, merge=False) as server:
        RemoteReward(server.url, batch_size=1).score(pictures(5), prompts)
    assert sorted(reward.calls) == [["a", "a"], ["b", "b", "b"]]


def test_several_servers_share_the_work():
    rewards = [Brightness(), Brightness()]
    with serving(rewards[0]) as one, serving(rewards[1]) as other:
        reward = RemoteReward([one.url, other.url], batch_size=2)
        assert torch.equal(reward.score(pictures(40), ["x"] * 40), expected(pictures(40)))
    assert all(reward.calls for reward in rewards)


@pytest.mark.parametrize(
    "fault",
    [
        408,
        429,
        500,
        502,
        503,
        504,
        "half",
        "nothing",
        "text",
        "list",
        "few",
        "strings",
        "nan",
        "long",
        "true",
    ],
)
def test_a_fault_that_may_pass_is_tried_again(fault):
    with playing(fault, fault) as server:
        assert RemoteReward(server.url).score(pictures(1), ["x"]).tolist() == [7.0]
        assert server.posts == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 411, 413, 415, 422, 431, "redirect"])
def test_a_refusal_is_never_tried_again(status):
    with playing(*[status] * 5) as server:
        with pytest.raises(RewardError, match="refused with status"):
            RemoteReward(server.url).score(pictures(1), ["x"])
        assert server.posts == 1


def test_tries_are_bounded():
    with playing(*[500] * 50) as server:
        with pytest.raises(RewardError, match=r"status 500 as you wished.*resume"):
            RemoteReward(server.url, attempts=3).score(pictures(1), ["x"])
        assert server.posts == 3


def test_a_server_that_drips_is_cut_off_and_asked_again():
    with playing("slow") as server:
        reward = RemoteReward(server.url, timeout=0.5)
        assert reward.score(pictures(1), ["x"]).tolist() == [7.0]
        assert server.posts == 2
        deadline = time.monotonic() + 10
        while not server.hung_up:
            assert time.monotonic() < deadline, "the client read to the end"
            time.sleep(0.02)


def test_the_deadline_ends_everything():
    with playing(*["slow"] * 50) as server:
        reward = RemoteReward(server.url, deadline=0.6, attempts=50)
        with pytest.raises(RewardError, match="No reward server answered POST"):
            reward.score(pictures(1), ["x"])
        assert server.posts < 10


def test_a_server_that_died_does_not_hold_up_a_living_one():
    images = pictures(60)
    with serving() as living:
        with serving() as mortal:
            reward = RemoteReward([living.url, mortal.url], batch_size=2)
            assert reward.info.unit == "mean"
        assert torch.equal(reward.score(images, ["x"] * 60), expected(images))


def test_a_server_may_die_and_come_back():
    port, images = free_port(), pictures(12)
    with serving(port=port) as server:
        reward = RemoteReward(server.url, batch_size=3)
        reward.score(images, ["x"] * 12)
    found = {}
    waiting = threading.Thread(target=lambda: found.update(s=reward.score(images, ["x"] * 12)))
    waiting.start()
    time.sleep(0.3)  # long enough to be refused a few times
    with serving(port=port):
        waiting.join()
    assert torch.equal(found["s"], expected(images))


def test_servers_that_serve_different_things_are_refused():
    with serving() as one, serving(info={"variant": "2"}) as other:
        reward = RemoteReward([one.url, other.url])
        with pytest.raises(RewardError, match="different things"):
            reward.score(pictures(1), ["x"])


def test_the_variant_can_be_demanded():
    with serving() as server:
        assert RemoteReward(server.url, variant="1").info.variant == "brightness: 1"
        with pytest.raises(RewardError, match="not '2'"):
            _ = RemoteReward(server.url, variant="2").info


def test_a_server_that_changes_what_it_serves_is_found_out():
    with playing("good", "other") as server:
        reward = RemoteReward(server.url)
        assert reward.score(pictures(1), ["x"]).tolist() == [7.0]
        with pytest.raises(RewardError, match="now serves 'brightness: 2'"):
            reward.score(pictures(1), ["x"])


def test_a_server_of_another_kind_is_refused():
    with playing(info={"hello": 1}) as server, pytest.raises(RewardError, match="proper 'info'"):
        _ = RemoteReward(server.url).info


@pytest.mark.parametrize(
    "ends",
    [["0", None], [None, "1"], [None, 10**400], [None, True], [1], 5, {}, [None, None, None]],
)
def test_a_range_that_is_none_is_refused(ends):
    with (
        playing(info=INFO | {"range": ends}) as server,
        pytest.raises(RewardError, match="proper 'info'"),
    ):
        _ = RemoteReward(server.url).info


def test_the_token_is_sent_from_the_environment_or_the_options(monkeypatch):
    with serving(token="secret") as server:
        with pytest.raises(RewardError, match="status 401"):
            _ = RemoteReward(server.url).info
        assert RemoteReward(server.url, token="secret").score(pictures(1), ["x"]).shape == (1,)
        monkeypatch.setenv("CALIBRI_REWARD_TOKEN", "secret")
        assert RemoteReward(server.url).score(pictures(1), ["x"]).shape == (1,)


@pytest.mark.parametrize(
    "url", [[], "127.0.0.1:8765", "ftp://x", "http://", "http://x:y", "http://x/path", "http://x:0"]
)
def test_urls_that_are_none_are_refused_when_it_is_made(url):
    with pytest.raises(RewardError, match="url"):
        RemoteReward(url)


@pytest.mark.parametrize(
    ("images", "prompts"),
    [
        (pictures(2), ["x"]),
        (pictures(2).float(), ["x"] * 2),
        (pictures(2)[:, :1], ["x"] * 2),
        (pictures(2)[0], ["x"] * 3),
    ],
)
def test_other_images_are_refused_before_anything_is_sent(images, prompts):
    with pytest.raises(RewardError, match="Pass one prompt per uint8 RGB image"):
        RemoteReward("http://127.0.0.1:1").score(images, prompts)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def rest(rests, clock):
    (_, until) = rests.next_of(["http://a"])
    return until - clock.now


def test_requests_that_meet_one_fault_together_count_it_once():
    clock = Clock()
    rests = Rests(["http://a"], clock)
    rests.failed("http://a", asked=1.0)
    rests.failed("http://a", asked=4.0)
    assert rest(rests, clock) == 1.0


def test_a_server_is_left_alone_longer_after_every_fault_in_a_row():
    clock = Clock()
    rests = Rests(["http://a"], clock)
    for i in range(10):
        clock.now += 10.0
        rests.failed("http://a")
        longest = min(5.0, 0.1 * 2**i)
        assert longest / 2 <= rest(rests, clock) <= longest + 1e-9
    rests.answered("http://a")
    clock.now += 10.0
    rests.failed("http://a")
    assert rest(rests, clock) <= 0.1 + 1e-9


def test_a_server_that_rests_is_passed_over():
    rests = Rests(["http://a", "http://b"], Clock())
    rests.failed("http://a")
    assert {rests.next_of(["http://a", "http://b"])[0] for _ in range(4)} == {"http://b"}
