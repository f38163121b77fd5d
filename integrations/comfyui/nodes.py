"""The node that loads a calibration onto a model."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

from .calibration import ONLY, PARTS, Calibration, read_calibration
from .places import Places, find_places
from .scaling import MemberSum

_KEY = "calibri"
# comfy.patcher_extension.WrappersMP; its values are part of ComfyUI's interface.
_APPLY_MODEL = "apply_model"


class LoadCalibration:
    """Loads a calibration of Calibri: put it behind the loaders of models and LoRAs."""

    CATEGORY = "model_patches"
    DESCRIPTION = (
        "Scales the residual branches of a diffusion transformer as a calibration says. Put it "
        "after LoRAs and after nodes that set the shift; sample with its steps and guidance."
    )
    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "made_for")
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Say what the node asks for; the name is ComfyUI's."""
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        return {
            "required": {
                "model": ("MODEL",),
                "path": ("STRING", {"default": "", "tooltip": "folder with calibri.json"}),
                "strength": ("FLOAT", strength),
            },
            "optional": {"part": (list(PARTS), {"default": ONLY, "tooltip": "of Wan 2.2"})},
        }

    def load(self, model: Any, path: str, strength: float, part: str = ONLY) -> tuple[Any, str]:
        """Return a clone of a model with a calibration on it, and the settings it was made for.

        Raises:
            ValueError: the calibration cannot be read, or is for another model, in words.
        """
        calibration = read_calibration(path, strength, part)
        patched = model.clone()
        network = patched.model.diffusion_model
        places = find_places(
            calibration.transformer_class,
            calibration.granularity,
            calibration.members[0].scales[0],
            [name for name, _ in network.named_modules()],
        )
        if calibration.is_constant:
            _scale_weights(patched, calibration, places)
        else:
            _check_noise(patched, calibration)
            patched.add_wrapper_with_key(_APPLY_MODEL, _KEY, MemberSum(calibration, places))
        if calibration.guidance != 1.0:
            patched.add_wrapper_with_key(_APPLY_MODEL, _KEY, _Guidance(calibration.guidance))
        if calibration.shift != 1.0:
            _change_shift(patched, calibration.shift)
        logging.info("%s.", calibration.advice)
        return patched, calibration.advice


def _scale_weights(patched: Any, calibration: Calibration, places: Places) -> None:
    """Patch weights: no difference at all, on top of the weight times a factor."""
    member = calibration.members[0]
    factors = {path: member.scale(name, 0.0) for path, name in places.scaled.items()}
    factors |= dict.fromkeys(places.outputs, member.weight(0.0))
    network = patched.model.diffusion_model
    for path, factor in factors.items():
        for name, _ in network.get_submodule(path).named_parameters(recurse=False):
            key = f"diffusion_model.{path}.{name}"
            if factor != 1.0 and key not in patched.add_patches({key: (None,)}, 0.0, factor):
                raise ValueError(f"ComfyUI did not take a patch of '{key}'. Update ComfyUI.")


def _check_noise(patched: Any, calibration: Calibration) -> None:
    """Refuse knots where sigma is no share of noise."""
    constant = all(member.is_constant for member in calibration.members)
    if not constant and float(patched.get_model_object("model_sampling").sigma_max) > 1.0 + 1e-6:
        raise ValueError(
            "The scales of this calibration change over the sampling steps, and this model counts "
            "them in another way than flow matching. Use a calibration with one knot."
        )


class _Guidance:
    """Multiplies the guidance that a model embeds."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("guidance") is None:
            raise ValueError(
                "This calibration changes the guidance that the model embeds, and there is none. "
                "Add FluxGuidance to the prompt."
            )
        return executor(*args, **kwargs | {"guidance": kwargs["guidance"] * self._factor})


def _change_shift(patched: Any, factor: float) -> None:
    """Multiply the shift a of t -> a t / (1 + (a - 1) t); FLUX states its logarithm."""
    sampling = copy.deepcopy(patched.get_model_object("model_sampling"))
    kinds = {kind.__name__ for kind in type(sampling).__mro__}
    if "ModelSamplingDiscreteFlow" in kinds:
        sampling.set_parameters(sampling.shift * factor, multiplier=sampling.multiplier)
    elif "ModelSamplingFlux" in kinds:
        sampling.set_parameters(sampling.shift + math.log(factor))
    else:
        raise ValueError(
            "This calibration changes the shift of the noise schedule, and this model has none "
            "that is known."
        )
    patched.add_object_patch("model_sampling", sampling)
