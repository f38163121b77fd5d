"""What a calibration stores of its rewards: never a secret, no address unasked, no code.

A calibration may come from anyone. It must not send images, prompts or a token to a server that the
user did not name, hand arguments to a reward of another package, or run a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

from calibri.errors import RewardError
from calibri.http_client import is_loopback
from calibri.rewards.local_files import is_file_spec
from calibri.rewards.mixing import split_mixture
from calibri.rewards.registry import is_own

Options = Mapping[str, Mapping[str, Any]]

_SECRET = re.compile(r"token|key|secret|password|credential|auth", re.IGNORECASE)
_ADDRESSES = ("url", "base_url")
# Where a reward runs is for the machine at hand to say.
_OF_THE_MACHINE = ("device",)


def storable_options(options: Options) -> dict[str, dict[str, Any]]:
    """Options that a calibration may store: none that is secret or of one machine only.

    Args:
        options: reward name to its arguments.

    Returns:
        The same without devices, tokens, keys, the names of variables that hold them, addresses
        with a user name or a query, and the paths of files of rewards.
    """
    kept = {
        name: {key: value for key, value in values.items() if _is_storable(key, value)}
        for name, values in options.items()
    }
    return {name: values for name, values in kept.items() if values}


def has_secrets(options: Options) -> bool:
    """Whether options hold what others must not read: tokens, keys, addresses with a password."""
    return any(
        _SECRET.search(key) or any(_has_credentials(text) for text in _texts(value))
        for values in options.values()
        for key, value in values.items()
    )


def _is_storable(key: str, value: Any) -> bool:
    if key in _OF_THE_MACHINE or _SECRET.search(key):
        return False
    if key == "reward" and is_file_spec(str(value)):
        return False
    return not any(_has_credentials(address) for address in _texts(value))


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for part in value.values() for text in _texts(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def _has_credentials(text: str) -> bool:
    if "://" not in text:
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return True
    return bool("@" in parts.netloc or parts.query)


def check_stored_names(names: Iterable[str]) -> None:
    """Refuse names of rewards in files, which somebody else's calibration may hold.

    Args:
        names: of the rewards of a calibration, or mixtures of them.

    Raises:
        RewardError: one is a reward in a file.
    """
    for name in (part for spec in names for part, _ in split_mixture(spec)):
        if is_file_spec(name):
            raise RewardError(
                f"The calibration was made with the reward '{name}' of a local file, and Calibri "
                "runs no file that a calibration names. If you have that file and trust it, name "
                f"it yourself: --reward ./{name}. Otherwise name other rewards."
            )


def join_stored_options(
    stored: Options, given: Options, names: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Join the options that a calibration stores with those that the user gives, which win.

    Args:
        stored: of the calibration.
        given: of the user; None in the place of a value drops the stored one.
        names: rewards that are used; what is stored of others is left out.

    Returns:
        Reward name to its arguments.

    Raises:
        RewardError: the calibration names a server on another machine, or has arguments for a
            reward of another package, and the user did not give the same option.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*names, *given)):
        agreed = given.get(name, {})
        old = storable_options({name: stored.get(name, {})}).get(name, {})
        own = is_own(str(agreed.get("reward", old.get("reward", name))))
        for key, value in old.items():
            if key not in agreed and not (own and _stays_here(key, value)):
                raise RewardError(
                    f"The calibration has the option {key} = {value!r} for reward '{name}', which "
                    "would send images to another machine, or is for a reward of another package. "
                    f"If that is what you want, give it: --option {name}.{key}={value}"
                )
        values = {key: value for key, value in {**old, **agreed}.items() if value is not None}
        found |= {name: values} if values else {}
    return found


def _stays_here(key: str, value: Any) -> bool:
    if key not in _ADDRESSES:
        return True
    try:
        return all(map(is_loopback, _texts(value)))
    except ValueError:
        return False
