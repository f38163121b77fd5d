"""The formats of other tools that a calibration is written in; a new one is a file and a row.

The command line reads this as it starts: what writes a format is imported only to write.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from calibri.errors import FuseError

if TYPE_CHECKING:
    from calibri.artifact.calibration import Calibration
    from calibri.pipelines import Network

Format = Literal["authors", "comfyui", "flux-blocks", "peft"]


@dataclass(frozen=True)
class Exporter:
    """How a format is written.

    Attributes:
        module: beside this one.
        function: in it.
        advice: what to do with what was written.
        several: whether it holds a pipeline of several transformers.
    """

    module: str
    function: str
    advice: str
    several: bool = False

    def write(self, calibration: Calibration, networks: Sequence[Network], output: Path) -> None:
        """Write a calibration of a model, which may be on the meta device.

        Raises:
            FuseError: there are several transformers, and it holds one.
        """
        module = importlib.import_module(f"calibri.artifact.formats.{self.module}")
        if len(networks) > 1 and not self.several:
            raise FuseError(
                f"This calibration is of {len(networks)} transformers, and this format holds one. "
                "Export it for ComfyUI, or save the whole pipeline with `calibri fuse`."
            )
        model = networks if self.several else networks[0].transformer
        getattr(module, self.function)(calibration, model, output)


EXPORTERS: dict[Format, Exporter] = {
    "authors": Exporter(
        "authors",
        "write_authors",
        "It is what the authors' code loads; `calibri import` reads it back.",
    ),
    "comfyui": Exporter(
        "comfyui",
        "write_lora",
        "Put it into ComfyUI's models/loras and load it with the LoRA loader, after other LoRAs; a "
        "workflow beside it shows how, where Calibri has one.",
        several=True,
    ),
    "flux-blocks": Exporter(
        "flux_blocks",
        "write_blocks",
        "Paste it into the field 'blocks' of FluxBlocksBuster, a node of ComfyUI_essentials.",
    ),
    "peft": Exporter(
        "ia3",
        "write_ia3",
        "Load it with peft.PeftModel.from_pretrained(pipe.transformer, folder).",
    ),
}
