import json

import pytest

from calibri.cli.evaluate import parse_option
from calibri.errors import RewardError
from calibri.rewards.stored_options import (
    check_stored_names,
    has_secrets,
    join_stored_options,
    storable_options,
)

LOOPBACK = "http://127.0.0.1:8765"


@pytest.mark.parametrize(
    "key", ["token", "api_key", "api_key_env", "API-KEY", "hf_token", "client_secret", "password"]
)
def test_secrets_and_the_names_of_their_variables_are_never_kept(key):
    assert storable_options({"judge": {key: "s3cret", "model": "m"}}) == {"judge": {"model": "m"}}


@pytest.mark.parametrize(
    "address",
    [
        "http://user:pw@host:1/v1",
        "https://user@host",
        "https://host/v1?sig=abc",
        "http://[bad/v1",
    ],
)
def test_addresses_with_credentials_are_not_kept_wherever_they_stand(address):
    for value in (address, ["http://good:1", address], {"servers": [address]}):
        assert storable_options({"remote": {"url": value}}) == {}


def test_what_decides_the_scores_is_kept_and_the_device_is_not():
    options = {
        "hpsv3": {"device": "cuda:1", "dtype": "bfloat16", "revision": "abc", "batch_size": 8},
        "mine": {"reward": "remote", "url": [LOOPBACK, "https://example.com:8765"]},
        "hpsv2.1": {"device": "cuda"},
    }
    assert storable_options(options) == {
        "hpsv3": {"dtype": "bfloat16", "revision": "abc", "batch_size": 8},
        "mine": options["mine"],
    }


def test_the_users_options_win_and_none_forgets():
    remembered = {"hpsv3": {"dtype": "bfloat16", "checkpoint": "/gone", "revision": "abc"}}
    given = {"hpsv3": {"revision": "def", "checkpoint": None}, "pickscore": {"batch_size": 2}}
    assert join_stored_options(remembered, given, ["hpsv3", "pickscore"]) == {
        "hpsv3": {"dtype": "bfloat16", "revision": "def"},
        "pickscore": {"batch_size": 2},
    }


def test_options_of_rewards_that_are_not_used_stay_behind():
    remembered = {"hpsv3": {"dtype": "bfloat16"}, "pickscore": {"batch_size": 2}}
    assert join_stored_options(remembered, {}, ["pickscore"]) == {"pickscore": {"batch_size": 2}}


def test_a_wrong_name_of_the_users_is_not_dropped_in_silence():
    assert join_stored_options({}, {"hpsv33": {"dtype": "bfloat16"}}, ["hpsv3"]) == {
        "hpsv33": {"dtype": "bfloat16"}
    }


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_server_on_this_machine_is_remembered(host):
    options = {"judge": {"base_url": f"http://{host}:8000/v1"}}
    assert join_stored_options(options, {}, ["judge"]) == options


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("judge", {"base_url": "https://127.0.0.1.example.com/v1"}),
        ("unifiedreward", {"base_url": "example.com"}),
        ("remote", {"url": [LOOPBACK, "http://10.0.0.1:8765"]}),
        ("mine", {"reward": "remote", "url": "http://10.0.0.1"}),
        ("remote", {"url": "//[bad"}),
    ],
)
def test_a_calibration_cannot_name_another_machine_unless_the_user_does(name, options):
    with pytest.raises(RewardError, match=r"another machine.*--option"):
        join_stored_options({name: options}, {}, [name])
    assert join_stored_options({name: options}, {name: options}, [name]) == {name: options}


def test_a_calibration_cannot_hand_arguments_to_a_reward_of_another_package():
    options = {"command": "rm -r /"}
    for label, extra in (("theirs", {}), ("hidden", {"reward": "theirs"})):
        with pytest.raises(RewardError, match="another package"):
            join_stored_options({label: {**options, **extra}}, {}, [label])
    # A label of the user's own for one of ours does not make theirs ours.
    with pytest.raises(RewardError, match="another package"):
        join_stored_options(
            {"judge": {"reward": "theirs", "x": 1}}, {"judge": {"reward": "theirs"}}, ["judge"]
        )
    with pytest.raises(RewardError, match="another package"):
        join_stored_options({"mine": {"x": 1}}, {"mine": {"reward": "theirs"}}, ["mine"])
    with pytest.raises(RewardError, match="another package"):
        join_stored_options(
            {"judge": {"template": "x"}}, {"judge": {"reward": "theirs"}}, ["judge"]
        )


def test_a_crafted_calibration_cannot_have_a_token_sent():
    crafted = {"judge": {"base_url": "http://127.0.0.1:9/v1", "api_key_env": "AWS_SECRET"}}
    assert join_stored_options(crafted, {}, ["judge"]) == {
        "judge": {"base_url": "http://127.0.0.1:9/v1"}
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("judge.base_url=http://a:1/v1?x=1", ("judge", "base_url", "http://a:1/v1?x=1")),
        ("hpsv2.1.batch_size=4", ("hpsv2.1", "batch_size", 4)),
        ("hpsv3.checkpoint=null", ("hpsv3", "checkpoint", None)),
        ("judge.scale=[0, 5]", ("judge", "scale", [0, 5])),
    ],
)
def test_options_on_the_command_line(text, expected):
    assert parse_option(text) == expected


@pytest.mark.parametrize("text", ["judge", "judge=1", "=1", ".=1", "judge.=1", ".x=1", "j.x=[1"])
def test_options_of_another_form_are_refused(text):
    with pytest.raises(RewardError, match="form|YAML"):
        parse_option(text)


def test_everything_kept_is_json():
    options = {"judge": {"scale": [0, 5], "template": "{prompt}", "model": None, "x": {"y": 1.5}}}
    assert json.loads(json.dumps(storable_options(options))) == storable_options(options) == options


@pytest.mark.parametrize(
    "name", ["mine.py:Bright", "hpsv3:0.5,/tmp/mine.py:Bright:0.5", " x.py:Y "]
)
def test_a_calibration_cannot_name_a_file_to_run(name):
    with pytest.raises(RewardError, match="runs no file that a calibration names"):
        check_stored_names(["shapes", name])
    check_stored_names(["shapes", "hpsv3:0.5,pickscore:0.5", "hpsv2.1"])


def test_the_path_of_a_file_is_not_stored_and_not_read_back():
    options = {"mine.py:Bright": {"reward": "/home/me/mine.py:Bright", "gain": 2}}
    assert storable_options(options) == {"mine.py:Bright": {"gain": 2}}
    crafted = {"shapes": {"reward": "/tmp/evil.py:Evil"}}
    assert join_stored_options(crafted, {}, ["shapes"]) == {}


def test_options_for_a_file_need_the_users_word():
    stored = {"mine.py:Bright": {"gain": 2}}
    given = {"mine.py:Bright": {"reward": "/home/you/mine.py:Bright"}}
    with pytest.raises(RewardError, match="another package"):
        join_stored_options(stored, given, ["mine.py:Bright"])
    agreed = {"mine.py:Bright": {"reward": "/home/you/mine.py:Bright", "gain": 3}}
    assert join_stored_options(stored, agreed, ["mine.py:Bright"]) == agreed


@pytest.mark.parametrize(
    ("options", "secret"),
    [
        ({"remote": {"token": "t"}}, True),
        ({"remote": {"url": "https://me:pw@host"}}, True),
        ({"remote": {"url": "http://host"}, "hpsv3": {"device": "cuda:1"}}, False),
        ({}, False),
    ],
)
def test_secrets_are_known_as_such(options, secret):
    assert has_secrets(options) == secret
