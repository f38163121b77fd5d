"""A factor on the guidance that a transformer is given as an input (FLUX.1-dev)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from calibri.coefficients import check_factors
from calibri.errors import GuidanceError
from calibri.pipelines import networks_of
from calibri.sampling.scales.uncopied import Uncopied

_ARGUMENT = "guidance"


class GuidanceHook(Uncopied):
    """Multiplies the guidance argument of a transformer row by row; the identity until told.

    Args:
        transformer: one without embedded guidance gets no hook.
    """

    def __init__(self, transformer: nn.Module) -> None:
        self._transformer = transformer
        self._factors: Tensor | None = None
        # From the start, because a model that is compiled meanwhile ignores a later hook.
        self._handle = (
            transformer.register_forward_pre_hook(self._before, with_kwargs=True)
            if networks_of(transformer)[0].embeds_guidance
            else None
        )

    def set(self, factors: Tensor | None) -> None:
        """Set the factors of the following forwards.

        Args:
            factors: one for each image, (images,), or one for all, (1,); None for the identity.

        Raises:
            UnsupportedModelError: the transformer has no guidance embedded.
        """
        is_identity = factors is None or bool((factors == 1).all())
        if not is_identity:
            check_factors(("guidance",), self._transformer)
        self._factors = None if is_identity else factors

    def remove(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()

    def _before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._factors is None:
            return None
        guidance = kwargs.get(_ARGUMENT)
        if guidance is None:
            raise GuidanceError(
                "This calibration multiplies the embedded guidance, but the transformer was called "
                "without any. Pass guidance by name."
            )
        factors = self._factors.to(guidance.device, guidance.dtype)
        if guidance.ndim and len(guidance) > 1:
            # One factor for each image, for each of the branches in the batch.
            branches, rest = divmod(len(guidance), len(factors))
            if rest:
                raise GuidanceError(
                    f"Factors on the guidance were set for {len(factors)} images, but the "
                    f"transformer got {len(guidance)} rows. Set one for all, or one per image."
                )
            factors = factors.repeat(branches)
        return args, kwargs | {_ARGUMENT: guidance * factors}
