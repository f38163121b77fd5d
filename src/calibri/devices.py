"""Where networks run."""

from __future__ import annotations

import torch

from calibri.errors import ConfigError


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
