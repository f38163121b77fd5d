"""What is hooked onto one transformer, and which behaviour its scales ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from calibri.coefficients import Place
from calibri.pipelines import Call, Network
from calibri.sampling.scales.behaviours import AlongTrajectory, Behaviour, ByBranch, Constant
from calibri.sampling.scales.ensemble import MemberSum, PassRunner
from calibri.sampling.scales.layout import LayoutResolver, RowLayout
from calibri.sampling.scales.site_hooks import SiteHooks, recomputed
from calibri.sampling.scales.uncopied import Uncopied
from calibri.sampling.scales.wrapped_forward import WrappedForward


class NetworkHooks(Uncopied):
    """The hooks of one transformer, the identity until told otherwise.

    Args:
        network: a transformer whose blocks are known.
        places: what of it is scaled, see ``scaled_places``.
        resolver: tells the layout of a forward from its arguments; needed only when branches of
            guidance have different scales and the network runs both.

    Attributes:
        recomputes: whether a forward keeps its arguments alone for a gradient, from the next
            scales on, and runs once more in the backward.
    """

    def __init__(
        self, network: Network, places: Sequence[Place], resolver: LayoutResolver | None = None
    ) -> None:
        self._network = network
        self._transformer = network.transformer
        packed = any(site.batch_axis is None for site in network.sites)
        self._layout = RowLayout(network.branch, packed, resolver)
        self._sites = SiteHooks(self._transformer, places)
        self._runner = PassRunner(self._sites, packed)
        self._forward = WrappedForward(self._transformer)
        self._behaviour: Behaviour = Constant(self._sites, self._layout)
        self._before_forward = self._transformer.register_forward_pre_hook(
            self._before, with_kwargs=True
        )

    @property
    def recomputes(self) -> bool:
        """The same for the passes of an ensemble."""
        return self._runner.recomputes

    @recomputes.setter
    def recomputes(self, on: bool) -> None:
        self._runner.recomputes = on

    def behaviour_for(self, scales: Tensor, branches: Sequence[int]) -> Behaviour:
        """Choose what the shape of scales asks for; nothing is set yet.

        Args:
            scales: see ``Scaler.set``.
            branches: branch of each member.

        Raises:
            UnsupportedModelError: there are several knots, and the timesteps are not known.
        """
        if scales.ndim == 4:
            inner, trajectory = self._constant_in_time(branches), self._network.trajectory
            return AlongTrajectory(inner, lambda call: trajectory.position(call.args, call.kwargs))
        return self._constant_in_time(branches)

    def _constant_in_time(self, branches: Sequence[int]) -> Behaviour:
        if len(branches) > len(set(branches)):
            return MemberSum(self._runner, self._layout, self._forward, branches)
        if len(branches) > 1:
            return ByBranch(self._sites, self._layout, branches)
        return Constant(self._sites, self._layout)

    def set(self, behaviour: Behaviour, scales: Tensor) -> None:
        """Give the following forwards a behaviour, and it scales of the shape it was chosen for."""
        self._forward.run_through(self._recomputed if self.recomputes else None)
        self._behaviour = behaviour
        behaviour.use(scales.to(_device(self._transformer), torch.float32))

    def skipped(self) -> list[str]:
        """Name the sites inside of blocks that were not scaled since this was last asked."""
        return self._sites.skipped()

    def remove(self) -> None:
        """Take every hook off; the transformer is as it was before."""
        self._before_forward.remove()
        self._sites.remove()
        self._forward.remove()

    def _recomputed(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return recomputed(self._sites, forward)(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.compiler.is_compiling():
            self._sites.follow()
        self._behaviour.before(Call(args, kwargs))


def _device(transformer: nn.Module) -> torch.device:
    device = next(transformer.parameters()).device
    # Weights of a sequentially offloaded model rest on the meta device between forwards.
    return torch.device("cpu") if device.type == "meta" else device
