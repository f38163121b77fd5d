"""Share a calibration on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from calibri.artifact import hub
from calibri.artifact.calibration import Calibration
from calibri.artifact.card import render_card
from calibri.signatures import typed


@typed
def publish(
    calibration: Calibration | str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | bool | None = None,
    commit_message: str = "Add a Calibri calibration",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a calibration with its card in one commit; create the repository if needed.

    Args:
        calibration: the folder of a finished run or of a calibration, or a ``Calibration``.
        repo_id: ``"user/repo"``.
        private: make a new repository private; otherwise it is as the account has it.
        token: access token of the hub; None takes the one that is logged in.
        commit_message: of the commit.
        revision: branch to commit to.
        create_pr: open a pull request in place of committing to the branch.

    Returns:
        Address of the commit or of the pull request.

    Raises:
        RunError: the run is not finished.
        CalibrationError: the name is none of a repository, there is no token, the calibration
            cannot be read, or the hub refused or could not be reached.
    """
    # What needs no network comes first.
    hub.check_repository_name(repo_id)
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    hub.check_token(token)
    return calibration.push_to_hub(
        repo_id,
        private=private or None,
        token=token,
        commit_message=commit_message,
        revision=revision,
        create_pr=create_pr,
    )


def preview(calibration: Calibration | str | Path, repo_id: str) -> str:
    """Write the page that ``publish`` would upload, and upload nothing.

    Args:
        calibration: see ``publish``.
        repo_id: ``"user/repo"``.

    Returns:
        The card as Markdown, with its metadata as YAML before it.

    Raises:
        RunError: the run is not finished.
        CalibrationError: the name is none of a repository, or the calibration cannot be read.
    """
    hub.check_repository_name(repo_id)
    if not isinstance(calibration, Calibration):
        calibration = Calibration.from_pretrained(calibration)
    return render_card(calibration, repo_id)
