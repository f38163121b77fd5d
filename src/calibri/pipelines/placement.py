"""Which networks of a pipeline may be moved between devices."""

from __future__ import annotations

from torch import nn

from calibri.pipelines.pipeline import Pipeline


def movable_modules(pipe: Pipeline) -> tuple[nn.Module, ...]:
    """Networks of a pipeline that may be moved as a whole.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        None of them when something else decides where they are: offloading by diffusers, a device
        map, or 8-bit weights, which cannot be moved.
    """
    modules = tuple(part for part in pipe.components.values() if isinstance(part, nn.Module))
    if getattr(pipe, "hf_device_map", None) or any(map(_is_bound, modules)):
        return ()
    return modules


def _is_bound(module: nn.Module) -> bool:
    if getattr(module, "hf_device_map", None) or getattr(module, "is_loaded_in_8bit", False):
        return True
    return any(_has_offloading_hook(part) for part in module.modules())


def _has_offloading_hook(module: nn.Module) -> bool:
    if hasattr(module, "_hf_hook"):  # accelerate: model and sequential CPU offload
        return True
    # diffusers: group offload; its other hooks (caches, casting) do not mind being moved.
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None
