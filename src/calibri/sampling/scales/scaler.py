"""Scale the sites of all transformers of a pipeline while their scales change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from calibri.coefficients import Coefficients, scaled_places
from calibri.pipelines import Network, networks_of, sites_of
from calibri.sampling.scales.compiled import guard_hooks
from calibri.sampling.scales.embedded import GuidanceHook
from calibri.sampling.scales.hooks import NetworkHooks
from calibri.sampling.scales.layout import LayoutResolver


class Scaler:
    """Hooks on every site of the transformers, set to the identity until told otherwise.

    Args:
        networks: a diffusers transformer whose blocks are known, or those of a pipeline.
        resolver: tells the layout of a forward from its arguments; needed only when branches
            of guidance have different scales and share a transformer.

    Attributes:
        networks: the transformers.
        sites: their sites, in the order of the scales.

    Raises:
        UnsupportedModelError: no sites are known.
    """

    def __init__(
        self, networks: nn.Module | Sequence[Network], resolver: LayoutResolver | None = None
    ) -> None:
        self.networks = networks_of(networks)
        self.sites = sites_of(self.networks)
        places = scaled_places(self.networks)
        guard_hooks()
        self._hooks = [
            NetworkHooks(network, own, resolver)
            for network, own in zip(self.networks, places, strict=True)
        ]
        self._guidance = [GuidanceHook(network.transformer) for network in self.networks]
        # Tables of the latest candidates, which come again with every batch of theirs.
        self._tables: list[tuple[Coefficients, Tensor]] = []

    @property
    def transformer(self) -> nn.Module:
        """The transformer of the pipeline, the first where it has several."""
        return self.networks[0].transformer

    def apply(
        self, candidates: Sequence[Coefficients], images: Sequence[int] | None = None
    ) -> None:
        """Give the following forwards the scales and guidance of coefficients.

        Args:
            candidates: alike in their members and knots.
            images: candidate of each image of a batch; None for the only one, which then serves
                any batch.

        Raises:
            CalibrationError: the names of a candidate do not match the sites.
            UnsupportedModelError: see ``set``.
        """
        self._tables = [(candidate, self._table(candidate)) for candidate in candidates]
        branches = candidates[0].member_branches
        if images is None and not candidates[0].per_branch:
            branches = branches[:1]  # without differences between branches one row serves all
        rows = (0,) if images is None else images
        scales = torch.stack([self._tables[row][1][: len(branches)] for row in rows])
        guidance = torch.tensor([candidates[row].guidance for row in rows])
        self.set(scales, branches, guidance)

    def apply_rows(
        self, coefficients: Coefficients, count: int, *, requires_grad: bool = False
    ) -> Tensor:
        """Give each image of the following forwards its own copy of the scales of a candidate.

        Args:
            coefficients: the candidate.
            count: images of a batch.
            requires_grad: whether what is sampled can be differentiated with respect to the copies.

        Returns:
            The copies, float32 (count, ...) with the shape of ``Coefficients.site_scales``.

        Raises:
            CalibrationError: the names of the candidate do not match the sites.
            UnsupportedModelError: see ``set``.
        """
        table = torch.from_numpy(coefficients.site_scales(self.sites)).float()
        scales = table.repeat(count, *[1] * table.ndim).requires_grad_(requires_grad)
        self.set(scales, coefficients.member_branches, torch.tensor([coefficients.guidance]))
        return scales

    def _table(self, coefficients: Coefficients) -> Tensor:
        for known, table in self._tables:
            if known is coefficients:
                return table
        return torch.from_numpy(coefficients.site_scales(self.sites))

    def set(
        self,
        scales: Tensor,
        branches: Sequence[int] | None = None,
        guidance: Tensor | None = None,
    ) -> None:
        """Set the scales of the following forwards.

        Args:
            scales: (images, members, sites + 1), output last, which all outputs of all
                transformers share; ``images`` is 1 to serve any batch, ``members`` is 1 to serve
                every branch. Kept in fp32, updated in place. With several knots of the trajectory,
                evenly spaced in the timestep: (images, members, knots, sites + 1). Where they
                require a gradient, what a transformer returns can be differentiated with respect
                to them.
            branches: branch of each member, 0 conditional, 1 unconditional; None when member i is
                branch i. Where several members share a branch, each forward becomes their
                weighted sum: in one batch, or one after the other when memory does not suffice or
                an argument of the forward is not known to have a batch axis.
            guidance: factors on the embedded guidance, (images,) or (1,); None for none.

        Raises:
            ValueError: the shape does not fit the sites.
            UnsupportedModelError: there are several knots, and the timesteps of a transformer are
                not known; or a factor, and no guidance is embedded.
        """
        if scales.ndim not in (3, 4) or scales.shape[-1] != len(self.sites) + 1:
            raise ValueError(
                f"Expected scales of shape (images, branches, {len(self.sites) + 1}), "
                f"got {tuple(scales.shape)}."
            )
        members = tuple(branches or range(scales.shape[1]))
        # All of them before the first is touched.
        chosen = [hooks.behaviour_for(scales, members) for hooks in self._hooks]
        for hook in self._guidance:
            hook.set(guidance)
        for hooks, behaviour in zip(self._hooks, chosen, strict=True):
            hooks.set(behaviour, scales)

    def recompute(self, on: bool) -> None:
        """Choose whether forwards keep little for a gradient, from the next scales on.

        Of the activations of all steps only those of one are in memory at a time: a forward keeps
        its arguments, and runs once more in the backward.
        """
        for hooks in self._hooks:
            hooks.recomputes = on

    def skipped(self) -> tuple[list[str], ...]:
        """Name the sites that no forward has scaled since this was last asked, by transformer.

        Those of a block that was left out are among them, and those that ran in a compiled graph
        without their hooks.
        """
        return tuple(hooks.skipped() for hooks in self._hooks)

    def remove(self) -> None:
        """Take every hook off; the transformers are as they were before."""
        for hooks in self._hooks:
            hooks.remove()
        for hook in self._guidance:
            hook.remove()
