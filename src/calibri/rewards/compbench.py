"""T2I-CompBench++ on attribute prompts (colour, shape, texture): BLIP on every noun chunk."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibri.errors import RewardError
from calibri.rewards.blip_vqa import DEFAULT, IMAGE_SIZE, MAX_TOKENS, BlipVqa
from calibri.rewards.noun_chunks import rule_based_noun_chunks
from calibri.rewards.reward import RewardInfo
from calibri.rewards.weights import Checkpoint

MAX_CHUNKS = 8
# Noun chunks that name no object.
SKIPPED = frozenset({"top", "the side", "the left", "the right"})
SPACY_MODEL = "en_core_web_sm"
RULES = "rules"

NounChunks = Callable[[str], Sequence[str]]


def read_noun_chunks(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a JSON object from prompts to lists of their noun chunks.

    Raises:
        RewardError: the file is missing, malformed, or a prompt has no chunk.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RewardError(f"Cannot read noun chunks from '{path}': {error}.") from error
    if not isinstance(entries, dict):
        raise RewardError(f'\'{path}\' is not of the form {{"a prompt": ["a noun chunk"]}}.')
    for prompt, chunks in entries.items():
        if not isinstance(chunks, list) or not chunks or not all(type(c) is str for c in chunks):
            raise RewardError(
                f"'{path}': the noun chunks of {prompt[:80]!r} are not a list of at least one "
                "text. Correct the entry."
            )
    return {prompt: tuple(chunks) for prompt, chunks in entries.items()}


def spacy_noun_chunks() -> NounChunks:
    """Make the benchmark's own way to noun chunks, with spaCy.

    Raises:
        RewardError: spaCy or its English model is not installed.
    """
    try:
        import spacy  # type: ignore[import-not-found,unused-ignore]

        language = spacy.load(SPACY_MODEL)
    except (ImportError, OSError) as error:
        raise RewardError(
            "Reward 'compbench-attribute' needs the noun chunks of each prompt. Give them as a "
            'JSON file {"a prompt": ["a noun chunk", ...]}, set noun_chunks to "rules" to guess '
            "them, or install spaCy: pip install spacy && "
            f"python -m spacy download {SPACY_MODEL}"
        ) from error
    return lambda prompt: [chunk.text for chunk in language(prompt).noun_chunks]


class CompBenchAttribute(BlipVqa):
    """Product over a prompt's noun chunks of the probability that BLIP sees them.

    Args:
        checkpoint: weights and tokenizer.
        noun_chunks: a JSON file or mapping from prompts to noun chunks; ``"rules"`` finds them by
            rules, which is a variant; None asks spaCy, as the benchmark does.
        **options: ``architecture``, ``device``, ``dtype`` and ``batch_size``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint = DEFAULT,
        *,
        noun_chunks: Path | str | Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(checkpoint, **options)
        self._source = noun_chunks
        self._find: NounChunks | None = None
        how = "given noun chunks"
        if noun_chunks is None or noun_chunks == RULES:
            how = f"spaCy {SPACY_MODEL}" if noun_chunks is None else "noun chunks by rules"
        self.info = RewardInfo(
            name="compbench-attribute",
            variant=f"{checkpoint}, PIL bicubic to {IMAGE_SIZE} x {IMAGE_SIZE}, {MAX_TOKENS} "
            f"tokens, {how}",
            range=(0.0, 1.0),
            unit="product of P(yes) / (P(yes) + P(no))",
            differentiable=True,
            license="see its card",
        )

    def noun_chunks(self, prompt: str) -> list[str]:
        """Noun chunks that are asked about: the first eight, without those that name no object.

        Raises:
            RewardError: they are not known, or there are none.
        """
        if self._find is None:
            self._find = self._make_find()
        chunks = [chunk for chunk in self._find(prompt) if chunk not in SKIPPED][:MAX_CHUNKS]
        if not chunks:
            # The benchmark gives such a prompt full marks, whatever the image shows.
            raise RewardError(
                f"The prompt {prompt[:80]!r} has no noun chunk to ask about. Leave it out, or use "
                "'blip-vqa', which asks about the whole prompt."
            )
        return chunks

    def _make_find(self) -> NounChunks:
        if self._source is None:
            return spacy_noun_chunks()
        if self._source == RULES:
            return rule_based_noun_chunks
        given = self._source
        known = given if isinstance(given, Mapping) else read_noun_chunks(Path(given))

        def find(prompt: str) -> Sequence[str]:
            if prompt not in known:
                raise RewardError(
                    f"The noun chunks of the prompt {prompt[:80]!r} are not given. Add it to them."
                )
            return known[prompt]

        return find

    def score_batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score one batch: bytes, (N, 3, H, W), and N prompts to float (N,).

        Raises:
            RewardError: the noun chunks of a prompt are not known.
        """
        chunks = [self.noun_chunks(prompt) for prompt in prompts]
        states = self.embed(images)
        scores = torch.ones(len(prompts), device=self.device)
        for turn in range(max(map(len, chunks))):
            rows = [row for row, found in enumerate(chunks) if turn < len(found)]
            questions = [f"{chunks[row][turn]}?" for row in rows]
            scores[rows] *= self.answer(states[rows], questions)
        return scores
