import base64
import hashlib
import io
import math
import re
import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards import endpoint
from calibri.rewards.endpoint import JudgeReward, UnifiedReward, read_score
from calibri.rewards.json_client import JsonClient
from tests.rewards import chat_server
from tests.rewards.chat_server import ChatServer, status

NUMBERED = re.compile(r"caption (\d+)")


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def images() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, 3, 6, 9), generator=generator, dtype=torch.uint8)


def judge(server: ChatServer, **options: object) -> JudgeReward:
    return JudgeReward(**{"base_url": server.url, "first_wait": 0.0, "timeout": 60.0, **options})


def number(body: dict) -> int:
    return int(NUMBERED.search(body["messages"][0]["content"][1]["text"])[1])


def captions(count: int) -> list[str]:
    return [f"caption {i} {{x}} {{prompt}} \u00e4\U0001f600" for i in range(count)]


def test_the_authors_own_text_shows_in_the_variant(monkeypatch):
    ours = UnifiedReward(model="m").info.variant
    assert ours.startswith("m/template-")
    theirs = "their words about [{prompt}]"
    digest = hashlib.sha256(theirs.encode()).hexdigest()
    monkeypatch.setattr(endpoint, "AUTHORS_TEMPLATE_SHA256", digest)
    exact = UnifiedReward(model="m", template=theirs).info.variant
    assert exact.startswith("m/authors-template-")
    assert UnifiedReward(model="m", template=theirs + " ").info.variant.startswith("m/template-")


def test_each_image_gets_the_score_of_its_own_reply(server, images):
    server.reply = lambda body: f"Score: {number(body)}.5"
    assert judge(server).score(images, captions(3)).tolist() == [0.5, 1.5, 2.5]


def test_requests_hold_the_exact_image_and_prompt_at_temperature_zero(server, images):
    judge(server, parallel=1, max_tokens=77).score(images, captions(3))
    for body, image, prompt in zip(server.requests, images, captions(3), strict=True):
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 77, "tiny-judge")
        picture, text = body["messages"][0]["content"]
        kind, data = picture["image_url"]["url"].split(",")
        assert kind == "data:image/png;base64"
        decoded = np.array(Image.open(io.BytesIO(base64.b64decode(data))))
        assert np.array_equal(decoded, image.permute(1, 2, 0).numpy())
        assert prompt in text["text"]
    assert server.paths[1:] == ["/v1/chat/completions"] * 3


def test_templates_may_hold_braces(server, images):
    judge(server, template='{"caption": "{prompt}"}').score(images[:1], ["{a} {prompt}"])
    asked = server.requests[0]["messages"][0]["content"][1]["text"]
    assert asked == '{"caption": "{a} {prompt}"}'


def test_images_are_judged_at_the_same_time_in_order(server, images):
    together = threading.Barrier(3, timeout=60)

    def reply(body: dict) -> str:
        together.wait()
        return f"Score: {number(body)}"

    server.reply = reply
    assert judge(server, parallel=3).score(images, captions(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 7", 7.0),
        ("First guess score: 3. After thought:\n**Score:** 8.25", 8.25),
        ("score: 10/10.", 10.0),
        ("I like it.", math.nan),
        ("", math.nan),
        (None, math.nan),
        ("Score: 11", math.nan),
        ("Score: -3", math.nan),
        ("Score: 8,5", math.nan),
        ("Score: <number>", math.nan),
    ],
)
def test_unreadable_replies_are_nan_and_counted_never_zero(server, images, reply, score):
    server.reply = lambda body: reply
    reward = judge(server)
    found = reward.score(images[:1], ["a caption"])
    assert found.tolist() == pytest.approx([score], nan_ok=True)
    assert reward.unread == int(math.isnan(score))
    assert reward.last_unread == ((reply or "") if reward.unread else "")


@settings(deadline=None)
@given(st.text(max_size=80), st.floats(0, 10).map(lambda x: round(x, 3)))
def test_a_written_score_is_read_whatever_comes_before(before, score):
    pattern = [re.compile(r"FINAL: (\d+\.\d+)$")]
    assert read_score(f"{before}\nFINAL: {score:.3f}", pattern, (0, 10)) == score


def test_unifiedreward_is_the_mean_of_its_three_axes(server, images):
    lines = "Alignment Score (1-5): 2.6947\nCoherence Score (1-5): 2.3715\nStyle Score (1-5): 2.8\n"
    replies = iter([lines, lines.replace("Style", "Mood"), lines.replace("2.8", "5.1")])
    server.reply = lambda body: next(replies)
    reward = UnifiedReward(base_url=server.url, parallel=1)
    scores = reward.score(images, captions(3))
    assert scores[0].item() == pytest.approx((2.6947 + 2.3715 + 2.8) / 3)
    assert scores[1:].isnan().all()
    assert (reward.unread, reward.info.range, reward.info.name) == (2, (1.0, 5.0), "unifiedreward")


PASSING = [chat_server.hang_up, chat_server.half_a_reply, status(500), status(502), status(503)]
PASSING += [status(429), status(429, Retry_After="0")]


@pytest.mark.parametrize("fault", PASSING)
def test_faults_that_may_pass_are_tried_again(server, images, fault):
    server.faults.extend([fault, fault])
    server.reply = lambda body: "Score: 4"
    assert judge(server, model="m").score(images[:1], ["a"]).tolist() == [4.0]
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", PASSING)
def test_tries_are_bounded(server, images, fault):
    server.faults.extend([fault] * 50)
    with pytest.raises(RewardError, match="failed 3 times"):
        judge(server, model="m", attempts=3).score(images[:1], ["a"])
    assert len(server.requests) == 3


@pytest.mark.parametrize("code", [400, 401, 404, 413, 422])
def test_refusals_are_never_tried_again(server, images, code):
    server.faults.append(status(code))
    with pytest.raises(RewardError, match=f"status {code}: .*told to say {code}"):
        judge(server, model="m").score(images[:1], ["a"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("fault", [chat_server.silence, chat_server.drip])
def test_slow_servers_meet_the_deadline(server, images, fault):
    server.faults.append(fault)
    server.reply = lambda body: "Score: 6"
    # On a busy machine a good answer may be late too: many tries, and as many as are needed.
    reward = judge(server, model="m", timeout=1.0, attempts=30)
    assert reward.score(images[:1], ["a"]).tolist() == [6.0]


def test_a_server_that_is_not_there_fails_in_plain_words(images):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    reward = JudgeReward(base_url=f"http://127.0.0.1:{port}/v1", first_wait=0.0, attempts=2)
    with pytest.raises(RewardError, match="failed 2 times.*Connection refused.*server runs"):
        reward.score(images[:1], ["a"])


def test_a_proxy_is_not_asked_for_this_machine(server, images, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert judge(server, attempts=1).score(images[:1], ["a"]).tolist() == [5.0]


def test_redirects_are_not_followed(server, images, monkeypatch):
    other = ChatServer()
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.faults.append(status(302, Location=f"{other.url}/chat/completions"))
    with pytest.raises(RewardError, match="status 302"):
        judge(server, model="m", api_key_env="JUDGE_KEY").score(images[:1], ["a"])
    other.close()
    assert other.paths == []


def test_a_server_of_another_kind_is_named(server, images):
    server.faults.append(chat_server.not_json)
    with pytest.raises(RewardError, match="did not answer with JSON but with b'<html>"):
        judge(server, model="m").score(images[:1], ["a"])
    server.faults.append(lambda handler: chat_server.send(handler, 200, {"choices": []}))
    with pytest.raises(RewardError, match="does not answer as OpenAI's API does"):
        judge(server, model="m").score(images[:1], ["a"])


def test_waits_double_with_jitter_and_heed_the_server(server):
    waits: list[float] = []
    client = JsonClient(server.url, attempts=9, first_wait=1.0, sleep=waits.append)
    server.faults.extend([status(500)] * 6 + [status(429, Retry_After="7"), status(500)])
    client.call("chat/completions", {"messages": [{"content": [0, {"text": "caption 1"}]}]})
    longest = [1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0, 20.0]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len({wait / most for wait, most in zip(waits[:5], longest, strict=False)}) == 5
    server.faults.append(status(429, Retry_After="7"))
    client.call("chat/completions", {"messages": []})
    assert waits[-1] == 7.0


def test_the_only_served_model_is_taken_and_named(server, images):
    reward = judge(server)
    assert reward.info.variant.startswith("the served model/")
    reward.score(images[:1], ["a"])
    assert reward.info.variant.startswith("tiny-judge/template-")
    assert server.requests[0]["model"] == "tiny-judge"
    server.models = ["a", "b"]
    with pytest.raises(RewardError, match="serves 2 models: a, b"):
        judge(server).score(images[:1], ["a"])


def test_variant_tells_templates_and_patterns_apart(server):
    options = [{}, {"template": "Score {prompt}"}, {"patterns": r"(\d)"}, {"model": "m"}]
    assert len({judge(server, **some).info.variant for some in options}) == 4


def test_key_goes_only_where_it_is_safe(server, images, monkeypatch):
    with pytest.raises(RewardError, match="'JUDGE_KEY' for the key is not set"):
        judge(server, api_key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge(server, model="m", api_key_env="JUDGE_KEY").score(images[:1], ["a"])
    judge(server, model="m").score(images[:1], ["a"])
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.headers[1]
    with pytest.raises(RewardError, match="Use https") as refused:
        JudgeReward(base_url="http://judge.example/v1", api_key_env="JUDGE_KEY")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "rate this"}, "must contain {prompt}"),
        ({"patterns": "("}, "no regular expression"),
        ({"patterns": r"Score: \d"}, "must have one group"),
        ({"base_url": "ftp://host/v1"}, "not an address"),
        ({"base_url": "http://user:word@host/v1"}, "not an address"),
        ({"base_url": "localhost:8000"}, "not an address"),
        ({"attempts": 0}, "attempts is 0"),
    ],
)
def test_bad_options_are_refused_before_any_request(options, message):
    with pytest.raises(RewardError, match=message) as refused:
        JudgeReward(**options)
    assert "word" not in str(refused.value)
