"""The figures of the pages, from what the benchmarks kept in ``benchmarks/results``.

    python -m benchmarks.figures            # writes them into README.md and docs
    python -m benchmarks.figures --check    # writes nothing; fails where a page says something else
    python -m benchmarks.figures --measure  # runs the benchmarks before, which takes hours

Benchmarks keep what they have done, so what is to be measured anew is removed from there before.
A page holds them between two comments that readers do not see, a table as well as a few words:

    <!-- figures: NAME -->0.34<!-- /figures -->
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import gradient, synthetic, synthetic_gradients, variants
from calibri.results import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- figures: ([\w.]+) -->)(.*?)(<!-- /figures -->)", re.DOTALL)


@cache
def kept(name: str) -> Any:
    """Results of a benchmark; None where it did not run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay out a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(figure: Figure, digits: int = 3, sign: str = "+") -> str:
    """Write a mean and its interval, as tables have it."""
    mean, low, high = (f"{x:{sign}.{digits}f}" for x in (figure.mean, figure.low, figure.high))
    return f"{mean} [{low}, {high}]"


def synthetic_summary() -> str:
    """What the suite found, a line each."""
    results = kept("synthetic")
    lines = [f"* {line}" for line in synthetic.summary(results)]
    return "\n".join([f"{len(results)} cells, `benchmarks/results/synthetic.json`:", "", *lines])


def synthetic_table() -> str:
    """Every cell of the suite."""
    return synthetic.tables(kept("synthetic")).split("\n\n")[0]


def synthetic_shares() -> str:
    """Least and largest share of the reference's images, to its tail mean."""
    shares = [row["fractions"][2][0] for row in kept("synthetic").values()]
    return f"{min(shares):.0%} to {max(shares):.0%}"


def shares_of_images(name: str = "images_to_target") -> str:
    """Images to each target on the shipped pipeline."""
    if kept(name) is None:
        return "Not measured yet."
    names = {
        "shipped": "what the reference ships",
        "mean": "its last mean",
        "tail": "its tail mean",
    }
    rows = []
    for target, words in names.items():
        line = kept(name)["summary"][f"{target}, of_budget"]
        mean = line["geometric_mean"]
        seeds = [f"{share:.2f}" if share < 1 else "1 (not reached)" for share in line["fractions"]]
        figure = f"{mean['mean']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]"
        rows.append((words, figure, ", ".join(seeds)))
    return table(("target", "geometric mean", "by seed"), rows)


def ends_of_searches() -> str:
    """Held-out rewards at the end of both searches on the shipped pipeline."""
    seeds = kept("images_to_target")["seeds"].values()

    def mean(reward: str, *place: str) -> str:
        found = []
        for record in seeds:
            for key in place:
                record = record[key]
            found.append(record[reward])
        return f"{np.mean(found):.3f}"

    columns = ("shapes", "shapes-judge")
    rows = [
        ("original", *(mean(c, "original") for c in columns)),
        ("**ours**", *(f"**{mean(c, 'ours', 'returned')}**" for c in columns)),
    ]
    theirs = [
        " / ".join(mean(c, "reference", place) for place in ("shipped", "mean", "tail"))
        for c in columns
    ]
    rows.append(("reference: ships / last mean / tail mean", *theirs))
    header = f"held out, at the end, mean of {len(seeds)} seeds"
    return table((header, "objective", "judge, never optimised"), rows)


def variants_table() -> str:
    """Starts and cheaper images beside the default."""
    runs = kept("variants")["runs"]
    default, *_ = variants.VARIANTS
    names = [name for name in variants.VARIANTS if _key(name) in runs]
    base = [runs[_key(default)]]
    original = [{n: [found[n][0]] * 3 for n in variants.REWARDS} for found in base]
    rows = []
    for name in names:
        against = original if name == default else base
        cells = [
            variants.difference([runs[_key(name)]], against, reward, row)
            for reward in variants.REWARDS
            for row in (1, 2)
        ]
        rows.append((name, *(interval(cell) for cell in cells)))
    places = ("half-way", "at the end")
    header = [f"{reward} {at}" for reward in ("objective", "judge") for at in places]
    return table(("variant", *header), rows)


def _key(variant: str) -> str:
    return f"{variant}, guidance 1, seed 0"


def gradient_gains() -> str:
    """The search by gradients beside the black box on the shipped pipeline."""
    runs, rows = kept("gradient")["runs"], []
    for guidance in sorted({key.split(", ")[1] for key in runs}):
        by_method = {
            method: [run for key, run in runs.items() if key.startswith(f"{method}, {guidance},")]
            for method in gradient.METHODS
        }
        for reward in gradient.REWARDS:
            lines = [gradient.summary(found)[reward] for found in by_method.values()]
            gains = [interval(line["gain"]) for line in lines]
            start = [guidance.removeprefix("guidance "), str(len(by_method["gradient"])), reward]
            original = f"{lines[-1]['original'].mean:.3f}"
            ahead = interval(gradient.advantage(by_method, reward))
            rows.append((*start, original, *gains, ahead))
    header = ("guidance", "seeds", "reward", "original", "black box", "gradient")
    return table((*header, "gradient - black box"), rows)


def gradient_cost() -> str:
    """Processor time of an image with its gradient, in that of one without."""
    ratios = [x for key, found in kept("gradient").items() if key.startswith("cost") for x in found]
    return f"{min(ratios):.1f} to {max(ratios):.1f}"


def synthetic_gradients_table() -> str:
    """The search by gradients on the suite."""
    return synthetic_gradients.table(kept("synthetic_gradients"))


def synthetic_gradients_shares() -> str:
    """Least and largest share of the reference's images, by gradients, to its tail mean."""
    shares = [row["fraction"][0] or 1.0 for row in kept("synthetic_gradients").values()]
    return f"{min(shares):.1%} to {max(shares):.1%}"


FIGURES: dict[str, Callable[[], str]] = {
    "synthetic.summary": synthetic_summary,
    "synthetic.table": synthetic_table,
    "synthetic.shares": synthetic_shares,
    "synthetic_gradients.table": synthetic_gradients_table,
    "synthetic_gradients.shares": synthetic_gradients_shares,
    "images_to_target.shares": shares_of_images,
    "images_to_target.gradient": partial(shares_of_images, "images_to_target_gradient"),
    "images_to_target.ends": ends_of_searches,
    "variants.table": variants_table,
    "gradient.gains": gradient_gains,
    "gradient.cost": gradient_cost,
}


# Seeds that were never used for choosing anything.
_REPORTED = ["--seeds", *map(str, range(20, 40))]
BENCHMARKS = [
    ["benchmarks"],
    ["benchmarks.synthetic"],
    ["benchmarks.synthetic_gradients"],
    ["benchmarks.images_to_target", *_REPORTED],
    ["benchmarks.images_to_target", *_REPORTED, "--set", "search.method=gradient"],
    ["benchmarks.gradient", *_REPORTED],
    ["benchmarks.variants", "--seeds", "0"],
]


def updated(text: str) -> str:
    """Put the figures of the results into a page.

    Raises:
        KeyError: the page asks for figures that there are not.
    """

    def filled(block: re.Match[str]) -> str:
        begin, name, before, end = block.groups()
        found = FIGURES[name]()
        return f"{begin}\n{found}\n{end}" if before.startswith("\n") else f"{begin}{found}{end}"

    return _BLOCK.sub(filled, text)


def pages() -> list[Path]:
    """Pages that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on differences")
    parser.add_argument("--measure", action="store_true", help="run the benchmarks before")
    options = parser.parse_args()
    if options.measure:
        for arguments in BENCHMARKS:
            subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, check=True)
    check = options.check
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := updated(text)) != text:
            stale.append(str(page.relative_to(ROOT)))
            if not check:
                page.write_text(new, encoding="utf-8")
    print(f"{'Stale' if check else 'Written'}: {', '.join(stale) or 'none'}")
    if check and stale:
        parser.exit(1)


if __name__ == "__main__":
    main()
