"""What a search method is: ask for vectors, tell what they are worth, return one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from calibri.search.popsize import large_popsize

if TYPE_CHECKING:  # names of methods are read before numpy is wanted
    import numpy as np
    from numpy.typing import NDArray

    from calibri.arrays import Vector


# What an image with its gradient costs in images without: one forward, and a backward of about two.
# Whatever counts images counts it so: plan, progress and results.
IMAGES_PER_GRADIENT = 3


class SearchMethod(Protocol):
    """A search in progress; it maximises and knows nothing but vectors and what it is told.

    What it asks for depends on its setup and on what it was told before alone, so telling stored
    feedback again replays a search bit for bit.
    """

    @property
    def mean(self) -> Vector:
        """Where it stands, float64 (n,), within the bounds."""
        ...

    @property
    def sigma(self) -> float:
        """Size of its steps, in units of the basis."""
        ...

    def ask(self) -> list[Vector]:
        """Vectors to be told about next, within the bounds; asking twice gives the same ones."""
        ...

    def tell(self, candidates: Sequence[Vector], feedback: NDArray[np.float64], /) -> None:
        """Learn from the candidates, as they were asked for or moved a little.

        Args:
            candidates: each float64 (n,), as many as were asked for.
            feedback: score of each, float64 (k,), higher is better; of a method that uses gradients
                the gradients of the scores of any number of images at the only one, float64
                (images, n).

        Raises:
            ValueError: a number is not finite, or there are not as many as there should be.
        """
        ...

    def result(self) -> Vector:
        """What it would return now, float64 (n,), within the bounds; the start at first."""
        ...


@dataclass(frozen=True)
class Setup:
    """What a search is made from.

    Attributes:
        start: first mean, float64 (n,).
        basis: columns are the steps along which the search begins alike, float64 (n, n),
            invertible; the identity searches the vector as it is.
        bounds: lowest and highest value of each number, float64 (n, 2); candidates beyond them
            are clipped.
        seed: of every draw.
        popsize: candidates per generation.
        sigma0: first step size of a method that draws, in units of ``basis``.
        learning_rate: step size of a method that follows gradients, in the same units.
        tail: last fraction of the means that are averaged, by a method that does.
    """

    start: Vector
    basis: NDArray[np.float64]
    bounds: NDArray[np.float64]
    seed: int
    popsize: int
    sigma0: float
    learning_rate: float
    tail: float


def _one(images: int, bucket_size: int, beside: int) -> int:
    return 1


@dataclass(frozen=True)
class MethodInfo:
    """A registered method: how it is made, and all that tells it apart from the others.

    Attributes:
        name: in ``search.method`` of a configuration.
        make: begins a search.
        popsize: candidates per generation by the number of searched numbers, where none is given.
        updates: how often it is told in a generation, by the images of the candidates of a
            black-box generation, the prompts of a bucket, and the images that an update takes for
            each of them beside that of its candidate.
        defaults: values of other settings of the search that stand where none are given.
        uses_gradients: it is told gradients; rewards that cannot be differentiated are refused,
            unless ``by_policy``.
        by_policy: these are policy gradients, which any reward has.
        plain_basis: every number starts with a step of the same length, whatever it does.
        papers_space: what is left open of the search space is the paper's.
        measures_first: a large run may choose its images by a measurement before it.
    """

    name: str
    make: Callable[[Setup], SearchMethod]
    popsize: Callable[[int], int] = large_popsize
    updates: Callable[[int, int, int], int] = _one
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uses_gradients: bool = False
    by_policy: bool = False
    plain_basis: bool = False
    papers_space: bool = False
    measures_first: bool = False
