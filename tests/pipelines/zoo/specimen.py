"""A tiny model of one class, and random inputs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tests.needs import of_diffusers
from tests.tiny import randomise


class Draw:
    """Random inputs of one forward with a given number of rows."""

    def __init__(self, rows: int, seed: int = 1) -> None:
        self.n = rows
        self.generator = torch.Generator().manual_seed(seed)

    def rows(self, *shape: int) -> Tensor:
        """Draw a tensor whose first axis is the batch."""
        return torch.randn(self.n, *shape, generator=self.generator)

    def shared(self, *shape: int) -> Tensor:
        """Draw a tensor without a batch axis."""
        return torch.randn(*shape, generator=self.generator)

    def time(self, value: float = 0.5) -> Tensor:
        """Give every row a timestep of its own."""
        return value * (1 - 0.1 * torch.arange(self.n) / self.n)

    def ones(self, *shape: int) -> Tensor:
        """Make a mask that hides nothing."""
        return torch.ones(self.n, *shape)


Inputs = Callable[[Draw], dict[str, Any]]


@dataclass(frozen=True)
class Specimen:
    """What it takes to build and call one transformer class.

    Attributes:
        model_class: name of the class in diffusers.
        config: arguments of a tiny model.
        inputs: keyword arguments of a forward.
        batched: a row of the batch is an image; False for packed sequences.
        row_axis: axis of the batch for inputs where it is not the first.
        variant: tells several configurations of one class apart.
        seed: of the weights.
    """

    model_class: str
    config: dict[str, Any]
    inputs: Inputs
    batched: bool = True
    row_axis: dict[str, int] = field(default_factory=dict)
    variant: str = ""
    seed: int = 0

    @property
    def id(self) -> str:
        return f"{self.model_class}-{self.variant}" if self.variant else self.model_class

    def model(self) -> nn.Module:
        return randomise(of_diffusers(self.model_class)(**self.config), self.seed).float()

    def draw(self, rows: int = 2, seed: int = 1) -> dict[str, Any]:
        return self.inputs(Draw(rows, seed))


def run(model: nn.Module, inputs: dict[str, Any]) -> list[Tensor]:
    """Run a model and list every tensor that it returns."""
    with torch.no_grad():
        return list(_tensors(model(**inputs, return_dict=False)))


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple)):
        for part in output:
            yield from _tensors(part)


def take_row(inputs: Any, row: int, rows: int, axes: Mapping[str, int], name: str = "") -> Any:
    """Cut one row out of the inputs of a batch; what has no row of its own stays as it is."""
    if isinstance(inputs, Mapping):
        return {key: take_row(value, row, rows, axes, key) for key, value in inputs.items()}
    axis = axes.get(name, 0)
    if isinstance(inputs, Tensor) and inputs.ndim > axis and inputs.shape[axis] == rows:
        return inputs.narrow(axis, row, 1)
    if isinstance(inputs, list) and len(inputs) == rows and name in _LISTS_OF_ROWS:
        return inputs[row : row + 1]
    if isinstance(inputs, list):
        return [take_row(part, row, rows, {}) for part in inputs]
    return inputs


# Lists with one element per row; other lists hold batches, for example one per text layer.
_LISTS_OF_ROWS = frozenset(
    {"x", "cap_feats", "img_shapes", "shape_list", "hidden_states", "encoder_hidden_states"}
    | {"condition_latents"}
)
