"""Which modules of an unknown transformer may be its blocks."""

from __future__ import annotations

from torch import nn

from calibri.pipelines.families.lookup import auxiliary_containers


def block_kinds(transformer: nn.Module) -> list[list[str]]:
    """Group the members of the trunk's lists by how they are built.

    Returns:
        Paths of blocks, one list for each kind, in the order of the model. A member that only
        wraps another module is replaced by it.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    inside: list[str] = []
    for path, module in transformer.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or _within(path, inside):
            continue
        blocks = [_unwrapped(f"{path}.{name}", child) for name, child in module.named_children()]
        blocks = [(name, block) for name, block in blocks if len(list(block.children())) >= 2]
        inside += [name for name, _ in blocks]
        if not auxiliary_containers() & set(path.split(".")):
            for name, block in blocks:
                groups.setdefault((path, *_structure(block)), []).append(name)
    return list(groups.values())


def _within(path: str, blocks: list[str]) -> bool:
    return any(path == block or path.startswith(f"{block}.") for block in blocks)


def _unwrapped(path: str, module: nn.Module) -> tuple[str, nn.Module]:
    children = list(module.named_children())
    if len(children) == 1 and not isinstance(children[0][1], nn.ModuleList | nn.Sequential):
        return _unwrapped(f"{path}.{children[0][0]}", children[0][1])
    return path, module


def _structure(block: nn.Module) -> tuple[str, ...]:
    # Flags such as context_pre_only change the forward without changing the modules.
    flags = [f"{k}={v}" for k, v in sorted(vars(block).items()) if isinstance(v, bool | str)]
    return (*flags, *(f"{path}:{type(m).__name__}" for path, m in block.named_modules()))
