"""Where networks run."""

from __future__ import annotations

import torch

from calibri.errors import ConfigError


def parse_device(device: str | torch.device) -> torch.device:
    """Read the name of a device, whether or not it is there.

    Raises:
        ConfigError: nothing is called so.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"There is no device '{device}': {error}.") from error


def resolve_device(device: str) -> torch.device:
    """Turn ``"auto"`` into the best device here, and check any other name.

    Raises:
        ConfigError: the device does not exist.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"Device '{device}' cannot be used here: {error}. Try 'auto'.") from error
    return chosen
