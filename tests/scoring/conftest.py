"""A session of the shipped pipeline, and candidates of its space."""

import numpy as np
import pytest

from calibri.prompts.sources import PromptSets
from calibri.runs.session import Session
from tests.scoring.sample_units import configured


@pytest.fixture(scope="module")
def session():
    return Session(configured(1), PromptSets((), (), ()))


@pytest.fixture(scope="module")
def candidates(session):
    rng = np.random.default_rng(0)
    size = session.space.size
    return [
        session.space.coefficients(session.space.start + 0.2 * rng.normal(size=size))
        for _ in range(8)
    ]
