"""A small stand-in of ComfyUI: its model classes, and as much of its ModelPatcher as a node uses.

Modules of a diffusers model are reached by the names that ComfyUI has for them, and its forward
goes through wrappers as ``comfy.patcher_extension.WrapperExecutor`` has it. The image is
``x - sigma F``.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from calibri.artifact.formats.native_names import native_names
from calibri.pipelines.sites.find import find_output_sites, find_sites


class Executor:
    def __init__(self, model, wrappers):
        self.class_obj, self._wrappers = model, wrappers

    def __call__(self, *args, **kwargs):
        if self._wrappers:
            inner = Executor(self.class_obj, self._wrappers[1:])
            return self._wrappers[0](inner, *args, **kwargs)
        return self.class_obj.apply(*args, **kwargs)


class Native(nn.Module):
    """ComfyUI's class: other names for the modules of a diffusers model."""

    def __init__(self, model, forward):
        super().__init__()
        self._own = forward
        for site in (*find_sites(model), *find_output_sites(model)):
            for fold in site.fold:
                self._place(native_names(model).of(fold.path), model.get_submodule(fold.path))

    def _place(self, path, module):
        *parents, name = path.split(".")
        at = self
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, nn.Module())
            at = at.get_submodule(parent)
        at.add_module(name, module)

    def forward(self, *args, **kwargs):
        return self._own(*args, **kwargs)


class Flow:
    """``ModelSamplingDiscreteFlow``, by its name."""

    sigma_max = torch.tensor(1.0)

    def __init__(self, shift=3.0):
        self.set_parameters(shift)

    def calculate_denoised(self, sigma, output, x):
        return x - output * sigma.reshape(-1, *[1] * (x.ndim - 1))

    def set_parameters(self, shift=1.0, timesteps=1000, multiplier=1000):
        self.shift, self.multiplier = shift, multiplier


ModelSamplingDiscreteFlow = type("ModelSamplingDiscreteFlow", (Flow,), {})


class Network(nn.Module):
    """``comfy.model_base.BaseModel``."""

    def __init__(self, native):
        super().__init__()
        self.diffusion_model = native
        self.model_sampling = ModelSamplingDiscreteFlow()

    def apply(self, x, sigma, *, transformer_options, **kwargs):
        return self.model_sampling.calculate_denoised(sigma, self.diffusion_model(x, **kwargs), x)


class Patcher:
    """``comfy.model_patcher.ModelPatcher``."""

    def __init__(self, model, sampling=None):
        self.model, self.sampling = model, sampling or model.model_sampling
        self.patches, self.wrappers, self.objects = {}, {}, {}

    def clone(self):
        other = Patcher(self.model, self.sampling)
        other.patches, other.objects = dict(self.patches), dict(self.objects)
        other.wrappers = copy.copy(self.wrappers)
        return other

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        known = [key for key in patches if key in self.model.state_dict()]
        for key in known:
            patch = (strength_patch, patches[key], strength_model)
            self.patches[key] = [*self.patches.get(key, []), patch]
        return known

    def get_model_object(self, name):
        assert name == "model_sampling"
        return self.objects.get(name, self.sampling)

    def add_object_patch(self, name, value):
        self.objects[name] = value

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers[kind] = [*self.wrappers.get(kind, []), wrapper]

    @torch.no_grad()
    def run(self, x, sigma, branches=(0,), **kwargs):
        """Patch the weights, run the model as its sampler does, and take the patches off.

        Returns what its own class returned or, with wrappers, would have to.
        """
        state = self.model.state_dict()
        before = {key: state[key].clone() for key in self.patches}
        for key, patches in self.patches.items():
            for strength, (difference,), factor in patches:
                assert strength == 0.0
                assert difference is None
                state[key].mul_(factor)
        executor = Executor(self.model, self.wrappers.get("apply_model", []))
        options = {"cond_or_uncond": list(branches)}
        image = executor(x, torch.full((len(x),), sigma), transformer_options=options, **kwargs)
        for key, value in before.items():
            state[key].copy_(value)
        return (x - image) / sigma
