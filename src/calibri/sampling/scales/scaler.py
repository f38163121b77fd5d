"""Scale the sites of all transformers of a pipeline while their scales change."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from calibri.pipelines import Networks, as_networks, find_output_sites, sites_of
from calibri.sampling.scales.embedded import GuidanceHook
from calibri.sampling.scales.hooks import LayoutResolver, NetworkHooks, refuse_compiled


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
        UnsupportedModelError: no sites are known, or a model is already compiled (torch ignores
            hooks that are added after the first compiled call).
    """

    def __init__(
        self, networks: nn.Module | Networks, resolver: LayoutResolver | None = None
    ) -> None:
        self.networks = as_networks(networks)
        self.sites = sites_of(self.networks)
        for network in self.networks:  # all of them before the first is touched
            refuse_compiled(network.transformer)
            find_output_sites(network.transformer)
        self._hooks = [NetworkHooks(network, resolver) for network in self.networks]
        self._guidance = [GuidanceHook(network.transformer) for network in self.networks]

    @property
    def transformer(self) -> nn.Module:
        """The transformer of the pipeline, the first where it has several."""
        return self.networks[0].transformer

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
        if scales.ndim == 4:
            for network in self.networks:
                _ = network.trajectory  # refuses one that is not known
        for hook in self._guidance:
            hook.set(guidance)
        first = 0
        for hooks in self._hooks:
            last = first + len(hooks.sites)
            hooks.set(scales[..., [*range(first, last), -1]], branches)
            first = last

    def remove(self) -> None:
        """Take every hook off; the transformers are as they were before."""
        for hooks in self._hooks:
            hooks.remove()
        for hook in self._guidance:
            hook.remove()
