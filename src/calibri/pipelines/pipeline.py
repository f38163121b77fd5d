"""What Calibri uses of a diffusers pipeline."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from torch import nn


class Pipeline(Protocol):
    """A pipeline of diffusers, as far as Calibri uses every one of them.

    What only some have, such as ``encode_prompt``, ``transformer_2`` or ``boundary_ratio``, is
    looked up where it is needed.

    Attributes:
        scheduler: replaced for a while when its shift is changed.
    """

    scheduler: Any

    @property
    def components(self) -> dict[str, Any]:
        """Role to network, scheduler or tokenizer."""
        ...

    @property
    def config(self) -> Any:
        """What the pipeline was built with."""
        ...

    @property
    def _execution_device(self) -> Any:
        """Where it samples, which offloading tells from where its weights are."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Sample."""
        ...


# Sites and scales need no more than the transformer.
PipelineOrTransformer: TypeAlias = Pipeline | nn.Module


def is_modular(pipe: object) -> bool:
    """Say whether a pipeline is put together of blocks: a ``ModularPipeline`` of diffusers."""
    return any(kind.__name__ == "ModularPipeline" for kind in type(pipe).__mro__)
