"""Everything that Calibri knows of a class of transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from calibri.config import Granularity
from calibri.pipelines.families.timesteps import Timesteps
from calibri.pipelines.geometries import Geometry
from calibri.pipelines.sites.site import Site

# How a pipeline gives its transformer the branches of classifier-free guidance.
Layout = Literal[
    "",
    "one call for each branch, conditional first",
    "one batch, unconditional first",
    "one batch, conditional first",
    "embedded, or one call for each branch",
    "embedded",
    "two transformers",
]
APART: Layout = "one call for each branch, conditional first"
UNCONDITIONAL_FIRST: Layout = "one batch, unconditional first"
CONDITIONAL_FIRST: Layout = "one batch, conditional first"
EMBEDDED_OR_APART: Layout = "embedded, or one call for each branch"


@dataclass(frozen=True)
class Guidance:
    """How pipelines run classifier-free guidance with a class of transformer.

    Attributes:
        layout: how they give it the branches; empty where no pipeline of diffusers runs it with
            guidance.
        excess_above: where they combine as c + g (c - u), the g above which they run the
            unconditional branch; None where they combine as u + w (c - u).
    """

    layout: Layout = ""
    excess_above: float | None = None

    def scale(self, argument: float) -> float:
        """Return w of u + w (c - u) for the guidance that a pipeline is called with; 1 is none."""
        if self.excess_above is None:
            return max(argument, 1.0)
        # c + g (c - u) = u + (1 + g) (c - u)
        return 1.0 + argument if argument > self.excess_above else 1.0


@dataclass(frozen=True)
class Forward:
    """How pipelines call a transformer, for a count of its operations without weights.

    Attributes:
        inputs: from the transformer's configuration, height and width of the latents, and tokens
            of the prompt to the arguments of a forward of one image.
        guidance: the setting of ``SamplingConfig`` that is classifier-free guidance here.
        text_lengths: tokens of a prompt in each text encoder.
        text_tokens: tokens of a prompt that the transformer sees.
        cut: the text encoder that ``max_sequence_length`` cuts to its tokens.
        default_size: latent height and width unless configured; None for the one of the
            transformer's configuration.
        decoded: shape of the latents that the VAE decodes, behind the batch and the channels.
    """

    inputs: Callable[[Any, int, int, int], dict[str, Any]]
    guidance: Literal["guidance_scale", "true_cfg_scale"]
    text_lengths: Mapping[str, int]
    text_tokens: int
    cut: str | None = None
    default_size: int | None = 128
    decoded: Callable[[int, int], tuple[int, ...]] = lambda height, width: (height, width)

    def lengths(self, most: int | None = None) -> dict[str, int]:
        """Tokens of a prompt in each text encoder, with ``max_sequence_length`` if it is given."""
        lengths = dict(self.text_lengths)
        if self.cut is not None and most is not None:
            lengths[self.cut] = min(lengths[self.cut], most)
        return lengths


@dataclass(frozen=True)
class SiteGroup:
    """Sites whose scalars stand together in a vector; an empty field takes every site.

    Attributes:
        container: path of the list that holds their blocks.
        stream: of the sites.
        layers: labels of the sites.
    """

    container: str = "transformer_blocks"
    stream: str = ""
    layers: tuple[str, ...] = ()

    def __contains__(self, site: Site) -> bool:
        return (
            site.block.rpartition(".")[0] == self.container
            and (not self.stream or site.stream == self.stream)
            and (not self.layers or site.layer in self.layers)
        )


@dataclass(frozen=True)
class AuthorsVector:
    """The order of the vectors that the authors of the paper published (spec section 5).

    Attributes:
        groups: granularity to the groups of the vector, in their order.
        guidance_scale: what they searched with (spec section 3).
        embedded: whether guidance is an input of the model, so that every member of an ensemble
            sees the prompt.
        ineffective: layer whose entries have no effect in the authors' code, so that the values in
            their files are noise.
    """

    groups: Mapping[Granularity, tuple[SiteGroup, ...]]
    guidance_scale: float
    embedded: bool = False
    ineffective: str = ""


@dataclass(frozen=True)
class Family:
    """A class of transformer, or several that are alike in everything here.

    Attributes:
        classes: their names in diffusers.
        blocks: class of block to its branches, see ``calibri.pipelines.families.notation``. Blocks
            are looked up by their own class, so each stands in one family and serves all models
            that are built from it. ``"Block[norm]"`` holds for blocks of that ``norm_type``.
        outputs: paths of the last linears, whose scaling scales the output: the paper's omega. One
            for each modality; ``*`` stands for anything.
        auxiliary: names of containers beside the trunk: refiners of the text or the latents, and
            control branches. Their blocks are sites only on request.
        text_containers: lists of blocks that work on the text stream, of a class of block that
            works on images elsewhere.
        packed: whether tensors in the blocks are packed sequences without a batch axis.
        batch_axes: (class of block or model, path in it) to the axis of the batch, where it is not
            the first.
        refined: class of block to why the rows know better than discovery.
        refused: why there is nothing to calibrate.
        timesteps: what pipelines give as a timestep; None where that is not known.
        no_timesteps: why it is not.
        guidance: how pipelines run classifier-free guidance.
        unsampled: what its pipelines do that makes an image depend on the others of its batch.
        one_prompt: whether its pipelines take one prompt a call.
        authors: the authors' vectors.
        forward: how pipelines call it, where a plan can count its operations.
        published: lower-case name of a repository, without its owner, to the shapes of its
            pipeline.
    """

    classes: tuple[str, ...]
    blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ("proj_out",)
    auxiliary: frozenset[str] = frozenset()
    text_containers: frozenset[str] = frozenset()
    packed: bool = False
    batch_axes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    refined: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    timesteps: Timesteps | None = None
    no_timesteps: str = "no pipeline of diffusers tells what timestep it is given"
    guidance: Guidance = Guidance()
    unsampled: str = ""
    one_prompt: bool = False
    authors: AuthorsVector | None = None
    forward: Forward | None = None
    published: Mapping[str, Geometry] = field(default_factory=dict)
