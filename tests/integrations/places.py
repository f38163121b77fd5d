"""Which modules of ComfyUI's models take which scale, out of Calibri's own tables.

``python -m tests.integrations.places`` writes them for the node that knows nothing of Calibri.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from calibri.artifact.formats.native_names import native_names
from calibri.pipelines.sites.find import find_output_sites, find_sites
from tests.artifact.formats.comfyui import KNOWN

FILE = Path(__file__).parents[2] / "integrations" / "comfyui" / "places.json"
# What a row stands for in every block and for every expert.
_NUMBER = re.compile(
    r"(?<=^blocks\.)\d+|(?<=_blocks\.)\d+|(?<=blocks\.block)\d+|(?<=layers\.)\d+|(?<=experts\.)\d+"
)


def places_of(model):
    """Rows of (module, site, layer, block) of a model, in its order."""
    names = native_names(model)
    rows = {}
    for site in (*find_sites(model), *find_output_sites(model)):
        gates = [site.parameter(g) if site.block else "" for g in ("gate", "layer", "block")]
        for fold in site.fold:
            row = [_NUMBER.sub("*", name) for name in (names.of(fold.path), *gates)]
            rows.setdefault(row[0], row)
    return list(rows.values())


def all_places():
    """Rows of every class: the union over its configurations."""
    found: dict[str, dict[str, list[str]]] = {}
    for specimen in KNOWN:
        rows = {row[0]: row for row in places_of(specimen.model())}
        found.setdefault(specimen.model_class, {}).update(rows)
    return {name: list(rows.values()) for name, rows in sorted(found.items())}


def as_text(places):
    """JSON with a row a line."""
    classes = [
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]"
        for name, rows in places.items()
    ]
    return "{\n" + ",\n".join(classes) + "\n}\n"


if __name__ == "__main__":
    FILE.write_text(as_text(all_places()))
