"""Whatever a public call is handed, a person hears which argument is wrong, in words."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import calibri
from calibri.errors import CalibriError, ConfigError, RewardError
from calibri.rewards.registry import make_reward
from calibri.signatures import fits, typed

NONSENSE = [
    None, 5, -1, "", b"x", [], {}, float("nan"), "a\0b", "x" * 5000, object(), "/nope", "../..",
    ("a",), True, "\ud800", "nope", np.zeros(3), Exception, "a" * 70 + "/" + "b" * 300,
]  # fmt: skip
# One lists, one serves, one takes nothing.
OTHERS = ("models", "serve_reward", "shapes_pipeline")
CALLS = [
    name
    for name in dir(calibri)
    if inspect.isfunction(getattr(calibri, name)) and name not in OTHERS
]


def required(function):
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("value", NONSENSE, ids=lambda value: ascii(value)[:20])
def test_nonsense_is_refused_in_words(name, value, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    function = getattr(calibri, name)
    arguments = dict.fromkeys(required(function), value)
    if not arguments:
        arguments = {next(iter(inspect.signature(function).parameters)): value}
    allowed = [None, {}] if name in ("calibrate", "plan", "inspect", "load_config") else []
    if any(value is one or value == one for one in allowed if not isinstance(value, np.ndarray)):
        return
    with pytest.raises(CalibriError):
        function(**arguments)
    assert not any(tmp_path.iterdir())


def optional():
    for name in CALLS:
        for parameter in inspect.signature(getattr(calibri, name)).parameters.values():
            if parameter.default is not parameter.empty and "Any" not in str(parameter.annotation):
                yield name, parameter.name


@pytest.mark.parametrize(("name", "key"), list(optional()))
def test_every_argument_says_its_name_when_it_is_wrong(name, key):
    function = getattr(calibri, name)
    # Checked in their order, so what is required must fit; nothing can be called like this.
    given = dict.fromkeys(required(function), typing.cast(Any, "/nope/nothing"))
    with pytest.raises(ConfigError, match=rf"{name} got \w+ = "):
        function(**given, **{key: object()})


@pytest.mark.parametrize(
    ("value", "wanted", "expected"),
    [
        (1, int, True),
        (np.int64(1), int, True),
        (True, int, False),
        (1, float, True),
        (np.float32(1), float, True),
        ("1", float, False),
        (True, bool, True),
        ("a", str | Path, True),
        (Path("a"), Path, True),
        (b"a", str | Path, False),
        (None, str | None, True),
        ("a", Sequence[str], False),
        (["a"], Sequence[str], True),
        ({}, Mapping[str, int], True),
        ("x", Literal["x", "y"], True),
        (1, Literal[True], False),
        ([], Literal["x"], False),
        (object(), Any, True),
        (torch.device("cpu"), str | torch.device, True),
    ],
)
def test_what_fits(value, wanted, expected):
    assert fits(value, wanted) == expected


def test_a_checked_call_is_the_same_for_all_others():
    @typed
    def call(path: Path, *rest: int, name: str = "x", **values: float) -> str:
        """Words."""
        return f"{path}{rest}{name}{values}"

    assert call(Path("a"), 1, name="b", c="not looked at") == "a(1,)b{'c': 'not looked at'}"
    assert str(inspect.signature(call)).startswith("(path: pathlib.Path, *rest: int")
    assert call.__doc__ == "Words."
    with pytest.raises(TypeError, match="path"):
        call()
    with pytest.raises(ConfigError, match=r"call got name = 5, which is an int\. It takes"):
        call(Path("a"), name=5)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("remote", {"url": "http://a..b"}, "no url"),
        ("remote", {"url": [1]}, "no url"),
        ("remote", {"url": 5}, "url = 5"),
        ("remote", {"timeout": -1.0}, "above 0"),
        ("remote", {"timeout": float("nan")}, "above 0"),
        ("remote", {"batch_size": "x"}, "batch_size = 'x'"),
        ("remote", {"attempts": 0}, "above 0"),
        ("remote", {"token": "a\nb"}, "line break"),
        ("remote", {"token": "é"}, "no ASCII"),
        ("clipscore", {"device": "gpu"}, "no device 'gpu'"),
        ("hpsv3", {"device": 7}, "device = 7"),
        ("hpsv3", {"dtype": 3}, "dtype = 3"),
        ("clipscore", {"checkpoint": 5}, "checkpoint = 5"),
    ],
)
def test_options_of_rewards_are_refused_when_they_are_made(name, options, words):
    with pytest.raises((RewardError, ConfigError), match=words):
        make_reward(name, **options)
