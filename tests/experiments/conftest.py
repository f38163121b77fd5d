import pytest

from calibri.runs import session
from tests.experiments.synthetic import Landscape


@pytest.fixture
def landscape(monkeypatch):
    """Have experiments score a known landscape in place of images; called, another one."""

    def make(**options):
        monkeypatch.setattr(session, "make_backend", lambda bench, *_: Landscape(bench, **options))

    make()
    return make
