"""Who sees which pairs, in which order, and what on the left: balanced, then shuffled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibri.seeds import derive_seed
from calibri.study.records import Study


@dataclass(frozen=True)
class Dealt:
    """A pair as one participant sees it.

    Attributes:
        pair: its id.
        flipped: whether the second of its images is on the left.
    """

    pair: str
    flipped: bool


def deal(study: Study, place: int) -> list[Dealt]:
    """Choose pairs, sides and order for the participant who comes as number ``place``.

    Participants 2k and 2k + 1 see the same pairs with sides swapped, and each of them half of the
    pairs either way, to within one: a liking for one side favours nobody. Pairs are dealt from one
    shuffled deck, round and round, so that two pairs never differ by more than two votes. Places
    are given in the order of consent: an invitation that is never used unbalances nothing.

    Args:
        study: what is shown.
        place: from 0.

    Returns:
        The pairs in their order; an attention check is never the first, unless there is nothing
        else.
    """
    twins = place // 2
    shown = _from_deck([p.id for p in study.pairs if not p.check], twins, study.pairs_each, study)
    checks = _from_deck([p.id for p in study.pairs if p.check], twins, study.checks_each, study)
    rng = _generator(study, "sides", twins)
    sides = _halves(len(shown), rng).tolist() + _halves(len(checks), rng).tolist()
    swapped = bool(place % 2)
    dealt = [Dealt(pair, side != swapped) for pair, side in zip(shown + checks, sides, strict=True)]
    return _ordered(dealt, len(shown), _generator(study, "order", place))


def _generator(study: Study, *names: str | int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(study.seed, "study", *names))


def _from_deck(ids: Sequence[str], hand: int, count: int, study: Study) -> list[str]:
    # One deck for everybody: dealing goes on where the hand before ended.
    deck = _generator(study, "deck").permutation(len(ids)).tolist()
    return [ids[deck[(hand * count + i) % len(deck)]] for i in range(count)]


def _halves(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """As many true as false, in random order; of an odd number one more of either, by chance."""
    sides = (np.arange(count) + rng.integers(2)) % 2 == 0
    return rng.permutation(sides)


def _ordered(dealt: list[Dealt], num_shown: int, rng: np.random.Generator) -> list[Dealt]:
    """Shuffle, with the checks spread over the whole."""
    shown = [dealt[i] for i in rng.permutation(num_shown)]
    checks = [dealt[num_shown + i] for i in rng.permutation(len(dealt) - num_shown)]
    stretches = np.array_split(np.arange(num_shown), max(len(checks), 1))
    for check, stretch in reversed(list(zip(checks, stretches, strict=False))):
        # From behind, so that the places before stay where they are.
        shown.insert(int(rng.integers(stretch[0] + 1, stretch[-1] + 2)), check)
    return shown
