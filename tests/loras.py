"""LoRAs of small transformers, made and saved by PEFT and diffusers themselves."""

from __future__ import annotations

import copy

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict

# Those of the published Flow-GRPO adapters of SD3.5-medium.
TARGETS = [
    f"attn.{name}"
    for name in (
        *("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out"),
        *("to_k", "to_out.0", "to_q", "to_v"),
    )
]


def drawn(model, seed=0, scale=0.3):
    """Draw the matrices of the adapters of a model, which begin at no change."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def config(**settings):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | settings)


def saved_by_peft(transformer, folder, **settings):
    """As the published ones are: ``PeftModel.save_pretrained`` of the transformer."""
    drawn(get_peft_model(copy.deepcopy(transformer), config(**settings))).save_pretrained(folder)
    return folder


def saved_by_diffusers(transformer, folder, **settings):
    adapted = copy.deepcopy(transformer)
    adapted.add_adapter(config(**settings))
    drawn(adapted)
    StableDiffusion3Pipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(adapted),
        **_collate_lora_metadata({"transformer": adapted}),
    )
    return folder
