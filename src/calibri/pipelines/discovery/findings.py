"""What discovery found, with the figures of its tests; a file that a user can read and correct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.networks import networks_of
from calibri.pipelines.sites.find import assign_sites
from calibri.pipelines.sites.site import Site
from calibri.results import Record


class Finding(Record):
    """One site and why it was accepted.

    Attributes:
        site: the site; edit or remove it in a saved file to correct the result.
        influence: change of the block's output when the site goes from 1 to 0, relative to the
            output.
        nonlinearity: distance of the output from a straight line in the scale, relative to the
            influence. A branch is exactly linear, so this is rounding alone.
    """

    site: Site
    influence: float
    nonlinearity: float


class BlockFinding(Record):
    """The test that no branch of a block was missed.

    Attributes:
        block: path of the block that was probed; blocks built alike are not probed again.
        block_class: its class.
        members: how many blocks of the model are built like it.
        is_identity: whether the block returns its inputs when all its sites are 0. If not, it
            changes the stream outside its branches, or is no residual block at all.
    """

    block: str
    block_class: str
    members: int
    is_identity: bool


class Discovery(Record):
    """Sites of one transformer, found by measurement.

    Attributes:
        transformer_class: class of the transformer.
        findings: one for each site, in the order of the blocks.
        doubtful: the same for blocks that are not the identity without their sites. They are not
            used; a person who has read the model's code may move them to ``findings``.
        outputs: the linears whose scaling scales the model's output.
        blocks: one for each kind of block.
    """

    transformer_class: str
    findings: list[Finding]
    doubtful: list[Finding]
    outputs: list[Site]
    blocks: list[BlockFinding]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The residual-branch sites."""
        return tuple(finding.site for finding in self.findings)

    def assign(self, transformer: nn.Module) -> None:
        """Make everything else use these sites for a transformer.

        Raises:
            UnsupportedModelError: the transformer is of another class, or lacks a site.
        """
        name = type(transformer).__name__
        if name != self.transformer_class:
            raise UnsupportedModelError(
                f"These sites were found in a {self.transformer_class}, this is a {name}. "
                "Discover its own sites."
            )
        assign_sites(transformer, self.sites, self.outputs)

    def assign_all(self, pipeline: Any) -> None:
        """Make everything else use these sites for each transformer of a pipeline.

        Args:
            pipeline: a diffusers pipeline, whose transformers are of one class and so built alike,
                or a bare transformer.

        Raises:
            UnsupportedModelError: a transformer is of another class, or lacks a site.
        """
        for network in networks_of(pipeline):
            self.assign(network.transformer)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Discovery:
        """Read a saved, perhaps corrected, result.

        Raises:
            UnsupportedModelError: the file cannot be read or is not such a result.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            raise UnsupportedModelError(
                f"Cannot read sites from '{path}': {error}. Write the file again with "
                "`calibri inspect --discover --save`."
            ) from error
