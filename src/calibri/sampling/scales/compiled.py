"""Hooks on models that torch compiles, before or after the hooks are put on."""

from __future__ import annotations

import torch
from torch._dynamo import config as compiler


def guard_hooks() -> None:
    """Let what is compiled from now on notice hooks that come and go.

    By default a compiled graph is not tied to the hooks of the model that it was made from
    (pytorch/pytorch#117758): another model of that class, or the same one once hooked, is run
    through it, and its own hooks are skipped. Graphs that were compiled before are dropped for that
    reason and compiled again where they are needed, once in a process.
    """
    if compiler.skip_nnmodule_hook_guards:
        compiler.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
