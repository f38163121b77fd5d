"""What weights cannot hold: scales that differ between branches of guidance, steps and members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .calibration import Calibration, Member
from .places import Places

# A factor for every row of a batch, or one for each of them, (rows,).
Factor = float | Tensor


class MemberSum:
    """Wraps ``apply_model``: runs it once for each member and adds up what the model returns.

    Not the forward of the model itself, which not all of ComfyUI's classes let be wrapped. Scales
    are hooks on modules for as long as a forward lasts, so that clones of a model share its weights
    and nothing is left on it.

    Args:
        calibration: whose members are added.
        places: of the model.
    """

    def __init__(self, calibration: Calibration, places: Places) -> None:
        members = calibration.members
        self._places = places
        self._by_branch = [[m for m in members if m.branch == branch] for branch in (0, 1)]

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the model in place of ``executor(x, sigma, ...)``, which returns the image."""
        model = executor.class_obj
        options = _options(args, kwargs)
        # The image is linear in what the model returns, and this is what it is for zero.
        start = model.model_sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        total = start
        for members in self._runs(options["cond_or_uncond"]):
            with self._scaled(model.diffusion_model, members, sigma, len(x)) as weights:
                if weights is not None:
                    image = executor(x, sigma, *args, **kwargs)
                    total = total + scaled(image - start, weights, len(x))
        return total

    @contextmanager
    def _scaled(
        self, network: nn.Module, members: Sequence[Member | None], sigma: Tensor, rows: int
    ) -> Iterator[Factor | None]:
        """Scale the modules for one forward; gives its weights, or None where all are 0."""
        position = float(sigma.max())
        weights = [m.weight(position) if m else 0.0 for m in members]
        if not any(weights):
            yield None
            return
        scales = {
            path: _factor([m.scale(name, position) if m else 1.0 for m in members], rows)
            for path, name in self._places.scaled.items()
        }
        with hooked(network, scales, rows):
            yield _factor(weights, rows)

    def _runs(self, branches: Sequence[int]) -> Iterator[list[Member | None]]:
        """Go through the forwards that it takes, with the member of each branch in the batch."""
        if max(branches) > 1:
            raise ValueError(
                "A calibration knows the conditional and the unconditional branch of guidance, and "
                "this guider has more. Use CFGGuider."
            )
        # Without guidance there is one branch, and all members are of it.
        own = [self._by_branch[branch] or self._by_branch[0] for branch in branches]
        for index in range(max(len(members) for members in own)):
            yield [members[index] if index < len(members) else None for members in own]


def _options(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict) and "cond_or_uncond" in value:
            return value
    raise ValueError(
        "This model does not say which branch of guidance it is called for. Use a calibration "
        "without branches, knots and members."
    )


def _factor(values: Sequence[float], rows: int) -> Factor:
    """One number for the batch where its branches agree, else one for each row."""
    if len(set(values)) == 1:
        return values[0]
    return torch.tensor(values).repeat_interleave(rows // len(values))


@contextmanager
def hooked(model: nn.Module, scales: Mapping[str, Factor], rows: int) -> Iterator[None]:
    """Multiply what modules return while inside.

    Args:
        model: ComfyUI's.
        scales: path of a module to its factor.
        rows: of the batch.
    """
    with ExitStack() as stack:
        for path, factor in scales.items():
            if isinstance(factor, Tensor) or factor != 1.0:
                hook = _hook(factor, rows)
                handle = model.get_submodule(path).register_forward_hook(hook)
                stack.callback(handle.remove)
        yield


def _hook(factor: Factor, rows: int) -> Any:
    return lambda module, args, output: scaled(output, factor, rows)


def scaled(output: Tensor, factor: Factor, rows: int) -> Tensor:
    """Multiply rows of a batch by their factors; in fp32, as a factor would lose digits in 16 bits.

    Raises:
        ValueError: the rows of the batch are not the first axis.
    """
    if not isinstance(factor, Tensor):
        return output * factor
    if output.shape[0] != rows:
        raise ValueError(
            "This model mixes the rows of a batch, and the calibration has others for each branch "
            "of guidance. Run the branches one after the other."
        )
    column = factor.to(output.device).reshape(-1, *[1] * (output.ndim - 1))
    return (output.float() * column).to(output.dtype)
