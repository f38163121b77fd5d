"""From the fold of a branch to the weights of one block."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from torch import nn

from calibri.pipelines.sites.site import Fold

_PART = re.compile(r"(?P<path>[\w.*-]+?)(?:\[(?P<part>\d+)/(?P<parts>\d+)\])?")


def fold_of(block: nn.Module, block_path: str, rule: str) -> tuple[Fold, ...]:
    """Resolve a fold rule in one block.

    Args:
        block: the block; weights may be on the meta device.
        block_path: its path in the transformer, "" for the transformer itself.
        rule: ``"a + b[2/6] | c"``, see ``calibri.pipelines.families.notation``.

    Returns:
        Targets of the first alternative that this block has; none when it has none of them.
    """
    for alternative in rule.split(" | "):
        targets = [_targets(block, block_path, term) for term in alternative.split(" + ")]
        if all(targets):
            return tuple(target for found in targets for target in found)
    return ()


def _targets(block: nn.Module, block_path: str, term: str) -> list[Fold]:
    found = _PART.fullmatch(term.strip())
    assert found, f"'{term}' is not a fold target"
    names = [name for name, _ in (*block.named_modules(), *block.named_parameters())]
    paths = [name for name in names if fnmatchcase(name, found["path"])]
    prefix = f"{block_path}." if block_path else ""
    return [Fold(prefix + path, _rows(block, path, found)) for path in paths]


def _rows(block: nn.Module, path: str, found: re.Match[str]) -> tuple[int, int] | None:
    if found["part"] is None:
        return None
    linear = block.get_submodule(path)
    assert isinstance(linear, nn.Linear)
    size = linear.out_features // int(found["parts"])
    return int(found["part"]) * size, (int(found["part"]) + 1) * size
