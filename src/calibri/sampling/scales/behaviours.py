"""How the scales of one transformer get to its rows: one class for each way.

A behaviour is given scales, then told of every forward before it begins. The weighted sum over the
members of an ensemble is one too (``MemberSum``); so is, on a hook of its own, the factor on the
embedded guidance (``GuidanceHook``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from calibri.pipelines import Call
from calibri.sampling.scales.layout import RowLayout
from calibri.sampling.scales.site_hooks import SiteHooks


class Behaviour(Protocol):
    """What is done around the forwards of one transformer."""

    def use(self, scales: Tensor) -> None:
        """Take the scales of the forwards to come: (images, members, columns), 1 image for any."""
        ...

    def before(self, call: Call) -> None:
        """Prepare a forward."""
        ...


class Constant:
    """The same scales for every row of an image, whatever its branch; set once, not at a forward.

    Args:
        hooks: of the transformer.
        layout: tells its rows apart.
    """

    def __init__(self, hooks: SiteHooks, layout: RowLayout) -> None:
        self._hooks = hooks
        self._layout = layout
        self._images = 1

    def use(self, scales: Tensor) -> None:
        """Take scales of one member."""
        self._images = scales.shape[0]
        self._hooks.fill(scales[:, 0])

    def before(self, call: Call) -> None:
        """Refuse a batch of other images."""
        self._layout.images(call, self._images, 1)


class ByBranch:
    """Scales for each branch of guidance, given to the rows of a forward by its layout.

    Args:
        hooks: of the transformer.
        layout: tells its rows apart.
        branches: branch of each member, no two alike.
    """

    def __init__(self, hooks: SiteHooks, layout: RowLayout, branches: Sequence[int]) -> None:
        self._hooks = hooks
        self._layout = layout
        self._member = {branch: member for member, branch in enumerate(branches)}
        self._scales = torch.ones(0)

    def use(self, scales: Tensor) -> None:
        """Take scales of one member for each branch."""
        self._scales = scales

    def before(self, call: Call) -> None:
        """Give each row the scales of its branch."""
        layout = self._layout.branches(call)
        images = self._layout.images(call, self._scales.shape[0], len(layout))
        groups = [self._scales[:, self._member[branch]].expand(images, -1) for branch in layout]
        self._hooks.fill(torch.cat(groups))


class AlongTrajectory:
    """Scales that change over the sampling steps: linear in the timestep between knots.

    Args:
        inner: is given the scales of each step.
        position: tells where on the trajectory a forward is, from 0, the image, at the first knot
            to 1, pure noise, at the last.
    """

    def __init__(self, inner: Behaviour, position: Callable[[Call], Tensor]) -> None:
        self._inner = inner
        self._position = position
        self._knots = torch.ones(0)

    def use(self, scales: Tensor) -> None:
        """Take the scales of every knot: (images, members, knots, columns)."""
        self._knots = scales
        self._inner.use(scales[:, :, 0])

    def before(self, call: Call) -> None:
        """Take the scales of this step."""
        knots, device = self._knots.shape[2], self._knots.device
        place = self._position(call).to(device) * (knots - 1)
        near = 1 - (place - torch.arange(knots, device=device)).abs()
        self._inner.use((self._knots * near.clamp(min=0)[:, None]).sum(dim=2))
        self._inner.before(call)
