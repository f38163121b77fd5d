"""A study as it is kept: what is shown, what is asked, and the folder of it all."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from calibri.errors import StudyError
from calibri.files import plain_words
from calibri.results import Record

QUESTIONS = {
    "preference": "Which image do you prefer overall?",
    "alignment": "Which image fits the text better?",
}
CHOICES = {"left": "Left", "tie": "Equal", "right": "Right"}


class Pair(Record):
    """Two images of one prompt.

    Attributes:
        id: of random letters: it says nothing about what is shown.
        conditions: what made the two images; of an attention check the first should win.
        images: their files under ``images/``, named by random letters.
        check: whether it is an attention check.
    """

    id: str
    prompt: str
    conditions: tuple[str, str]
    images: tuple[str, str]
    check: bool = False


class Study(Record):
    """What a study shows, and to how many.

    Attributes:
        consent: what a participant agrees to; paragraphs are parted by empty lines.
        conditions: names of what is compared; the last is the one that verdicts speak of.
        pairs: attention checks included.
        pairs_each: pairs that each participant sees, without checks.
        checks_each: attention checks among them.
        seed: of every order.
    """

    format_version: Literal[1] = 1
    calibri_version: str
    title: str
    consent: str
    conditions: tuple[str, ...]
    pairs: tuple[Pair, ...]
    pairs_each: int
    checks_each: int
    seed: int

    def by_id(self) -> dict[str, Pair]:
        """The pairs by their ids."""
        return {pair.id: pair for pair in self.pairs}


class StudyFolder:
    """Paths of a study.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images = path / "images"
        self.votes = path / "votes.db"
        self.invitations = path / "invitations.csv"

    @property
    def file(self) -> Path:
        """The file that is written last: with it a study is whole."""
        return self.path / "study.json"

    def read(self) -> Study:
        """Read what the study shows.

        Raises:
            StudyError: there is no study, or it cannot be read.
        """
        try:
            return Study.model_validate_json(self.file.read_bytes())
        except FileNotFoundError as error:
            raise StudyError(
                f"'{self.path}' is no study: it has no {self.file.name}. Make one with "
                "`calibri study create`."
            ) from error
        except OSError as error:
            raise StudyError(f"Cannot read {self.file}: {plain_words(error)}.") from error
        except ValidationError as error:
            raise StudyError(
                f"{self.file} is damaged, or of another version of Calibri: "
                f"{error.errors()[0]['msg']}. Restore it; the votes are in {self.votes.name}."
            ) from error
