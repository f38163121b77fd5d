"""Print how the rewards rank right above wrong on freshly rendered scenes.

python training/validate_rewards.py --scenes 1000 --seed 1
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from calibri.rewards import Reward, make_reward
from calibri.seeds import derive_seed
from calibri.shapes import sample_prompts
from calibri.shapes.render import render_batch
from calibri.shapes.scenes import Scene, parse_caption
from calibri.shapes.variations import DAMAGES, NEAR_MISSES

Case = tuple[str, list[int], Tensor]
"""A name, the scenes it is about, and their pictures."""


def wrong_pictures(scenes: list[Scene], right: Tensor, generator: torch.Generator) -> list[Case]:
    """Every way to be wrong, drawn once for every scene to which it applies."""
    cases: list[Case] = []
    for name, miss in NEAR_MISSES.items():
        missed = [(i, miss(scene, generator)) for i, scene in enumerate(scenes)]
        found = [(i, other) for i, other in missed if other is not None]
        pictures = render_batch([other for _, other in found], generator)
        cases.append((name, [i for i, _ in found], pictures))
    everyone = list(range(len(scenes)))
    cases.append(("shuffled captions", everyone, right.roll(1, 0)))
    cases += [(name, everyone, damage(right, generator)) for name, damage in DAMAGES.items()]
    return cases


def print_table(reward: Reward, texts: list[str], right: Tensor, cases: list[Case]) -> None:
    """Mean scores, and the share of pairs in which the right picture scores higher."""
    base = reward.score(right, texts)
    print(f"\n{reward.info.name}: {len(texts)} held-out captions")
    print(f"{'picture':<20}{'pairs':>7}{'mean score':>12}{'right > wrong':>15}")
    print(f"{'right':<20}{len(texts):>7}{base.mean():>12.3f}")
    for name, rows, pictures in cases:
        scores = reward.score(pictures, [texts[i] for i in rows])
        ranked = (base[rows] > scores).float().mean()
        print(f"{name:<20}{len(rows):>7}{scores.mean():>12.3f}{ranked:>15.3f}")


def main() -> None:
    """Read the command line and print one table per reward."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rewards", nargs="+", default=["shapes", "shapes-judge"])
    args = parser.parse_args()
    texts = sample_prompts(args.scenes, args.seed, "held_out")
    scenes = [parse_caption(text) for text in texts]
    generator = torch.Generator().manual_seed(derive_seed(args.seed, "validate rewards"))
    right = render_batch(scenes, generator)
    cases = wrong_pictures(scenes, right, generator)
    for name in args.rewards:
        print_table(make_reward(name), texts, right, cases)


if __name__ == "__main__":
    main()
