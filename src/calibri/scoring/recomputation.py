"""How little of a sampling is kept for its gradient; what is not kept is computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from calibri.pipelines import networks_of
from calibri.scoring.bench import Bench

_STEPS, _BLOCKS = 1, 2


class Recomputation:
    """Keeps all activations until they do not fit, then fewer and fewer.

    At first everything is kept. Then each forward of a transformer keeps its arguments alone, and
    so does each block of the decoder: what one step needs is in memory at a time. At last blocks of
    the transformer keep their arguments alone, too (Chen et al. 2016, *Training Deep Nets with
    Sublinear Memory Cost*).

    Args:
        bench: its pipeline samples.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._transformers = [network.transformer for network in networks_of(bench.pipe)]
        self._level = 0

    def more(self) -> bool:
        """Keep less from now on; False where nothing less can be kept."""
        if self._level == _BLOCKS:
            return False
        self._level += 1
        return True

    @contextmanager
    def active(self) -> Iterator[None]:
        """Sample and differentiate in it: outside the pipeline is as it was."""
        modules: list[nn.Module] = []
        if self._level >= _STEPS:
            modules += _decoders(self._bench.pipe)
        if self._level >= _BLOCKS:
            modules += self._transformers
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(_blocks_recomputed(module))
            self._bench.scaler.recompute(self._level >= _STEPS)
            stack.callback(self._bench.scaler.recompute, False)
            yield


def _decoders(pipe: Any) -> Sequence[nn.Module]:
    vae = getattr(pipe, "vae", None)
    return [vae] if isinstance(vae, nn.Module) else []


@contextmanager
def _blocks_recomputed(module: Any) -> Iterator[None]:
    """Have diffusers run blocks as it does for training, where it can."""
    able = getattr(module, "_supports_gradient_checkpointing", False)
    if not able or module.is_gradient_checkpointing:
        yield
        return
    module.enable_gradient_checkpointing()
    try:
        yield
    finally:
        module.disable_gradient_checkpointing()
