"""A LoRA that is trained: one flat parameter, its optimiser, its average, and how it is saved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from parallel import flatten_parameters

# Published for SD3.5-medium: what is adapted, and how.
TARGETS = [
    f"attn.{name}"
    for name in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
]
BETAS, WEIGHT_DECAY, LARGEST_NORM = (0.9, 0.999), 1e-4, 1.0
AVERAGE_EVERY, AVERAGE_DECAY = 8, 0.9


class Adapter:
    """A LoRA on a transformer as one flat parameter, with its optimiser.

    Args:
        transformer: of diffusers; all of its own weights are held.
        rank: of its matrices.
        alpha: what they are multiplied by, in units of the rank.
        learning_rate: of AdamW.
        seed: of its first matrices.
    """

    def __init__(
        self, transformer: Any, rank: int, alpha: int, learning_rate: float, seed: int
    ) -> None:
        self.transformer = transformer.requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # PEFT draws from the global state
            transformer.add_adapter(
                LoraConfig(
                    r=rank,
                    lora_alpha=alpha,
                    init_lora_weights="gaussian",
                    target_modules=TARGETS,
                )
            )
        trained = [p for p in transformer.parameters() if p.requires_grad]
        self._parts = nn.ParameterList(trained)
        self.flat = flatten_parameters(self._parts)
        self.average = self.flat.detach().clone()
        self.updates = 0
        self._adam = torch.optim.AdamW(
            [self.flat], learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    def zero_grad(self) -> None:
        """Forget the gradient; those of the parts are views of it."""
        self.flat.grad.zero_()  # type: ignore[union-attr]  # set by flatten_parameters

    def step(self) -> None:
        """One update with the sum of the gradients of all processes."""
        dist.all_reduce(self.flat.grad)
        nn.utils.clip_grad_norm_([self.flat], LARGEST_NORM)
        self._adam.step()
        self.updates += 1
        if self.updates % AVERAGE_EVERY == 0:
            decay = min(AVERAGE_DECAY, (1 + self.updates) / (10 + self.updates))
            self.average.lerp_(self.flat.detach(), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """All that the next update depends on."""
        moments = self._adam.state[self.flat]
        names = ("step", "exp_avg", "exp_avg_sq")
        own = {name: moments[name].clone() for name in names}
        return own | {"flat": self.flat.detach().clone(), "average": self.average.clone()}

    def restore(self, state: dict[str, Tensor], updates: int) -> None:
        """Go on from what ``state`` gave."""
        self.flat.data.copy_(state.pop("flat"))
        self.average.copy_(state.pop("average"))
        self._adam.state[self.flat] = dict(state)
        self.updates = updates

    def save(self, pipe: Any, folder: Path) -> None:
        """Write the averaged weights as diffusers writes a LoRA; the folder appears whole."""
        now = self.flat.detach().clone()
        self.flat.data.copy_(self.average if self.updates >= AVERAGE_EVERY else now)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        pipe.save_lora_weights(
            partial,
            transformer_lora_layers=get_peft_model_state_dict(self.transformer),
            **_collate_lora_metadata({"transformer": self.transformer}),
        )
        self.flat.data.copy_(now)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
