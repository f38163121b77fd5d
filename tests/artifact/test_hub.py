from __future__ import annotations

import pytest

from calibri.artifact import folder_format
from calibri.artifact.calibration import Calibration
from calibri.errors import CalibrationError
from tests.hub_server import LocalHub, Repository

REPO = "someone/a-calibration"


def test_what_is_pushed_can_be_loaded(hub: LocalHub, calibration: Calibration) -> None:
    url = calibration.push_to_hub(REPO, token=hub.token)
    assert url.startswith(f"{hub.endpoint}/{REPO}/commit/")
    assert Calibration.from_pretrained(REPO) == calibration


def test_the_card_on_the_hub_loads_from_the_hub(hub: LocalHub, calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, token=hub.token)
    uploaded = hub.repositories[REPO].files_at("main")
    assert uploaded is not None
    assert set(uploaded) == {"calibri.json", "calibri.safetensors", "README.md"}
    assert f'calibri.load(pipe, "{REPO}")' in uploaded["README.md"].decode()


def test_a_private_repository_needs_its_token(hub: LocalHub, calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, private=True, token=hub.token)
    assert hub.repositories[REPO].private
    with pytest.raises(CalibrationError, match="pass a token"):
        Calibration.from_pretrained(REPO)
    assert Calibration.from_pretrained(REPO, token=hub.token) == calibration


def test_a_wrong_token_is_refused_in_plain_words(hub: LocalHub, calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match="was not uploaded"):
        calibration.push_to_hub(REPO, token="wrong")
    assert hub.repositories == {}


def test_a_revision_is_followed(hub: LocalHub, calibration: Calibration) -> None:
    other = calibration.model_copy(update={"calibri_version": "0.2.0"})
    calibration.push_to_hub(REPO, token=hub.token)
    other.push_to_hub(REPO, token=hub.token, revision="next")
    first = hub.repositories[REPO].branches["main"]
    assert Calibration.from_pretrained(REPO, revision="next") == other
    assert Calibration.from_pretrained(REPO, revision=first) == calibration
    with pytest.raises(CalibrationError, match="no such revision"):
        Calibration.from_pretrained(REPO, revision="missing")


def test_a_pull_request_leaves_the_branch_alone(hub: LocalHub, calibration: Calibration) -> None:
    hub.repositories[REPO] = Repository()
    url = calibration.push_to_hub(REPO, token=hub.token, create_pr=True)
    assert url.endswith("/discussions/1")
    assert list(hub.repositories[REPO].branches) == ["refs/pr/1"]


def test_loads_offline_after_a_download(hub: LocalHub, calibration: Calibration) -> None:
    with pytest.raises(CalibrationError, match="no earlier download"):
        Calibration.from_pretrained(REPO, local_files_only=True)
    calibration.push_to_hub(REPO, token=hub.token)
    Calibration.from_pretrained(REPO)
    before = len(hub.requests)
    assert Calibration.from_pretrained(REPO, local_files_only=True) == calibration
    assert len(hub.requests) == before


def test_only_the_two_files_are_downloaded(hub: LocalHub, calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, token=hub.token)
    hub.repositories[REPO].commit("main", {"calibri.pkl": b"\x80", "config.json": b"{}"})
    Calibration.from_pretrained(REPO)
    fetched = {path.rsplit("/", 1)[-1] for verb, path in hub.requests if verb == "GET"}
    assert fetched == {"calibri.json", "calibri.safetensors"}


def test_an_oversized_file_is_not_downloaded(hub: LocalHub) -> None:
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].commit(
        "main", {folder_format.JSON_NAME: bytes(folder_format.MAX_BYTES + 1)}
    )
    with pytest.raises(CalibrationError, match="at most 10 MB"):
        Calibration.from_pretrained(REPO)
    assert hub.bytes_sent == 0


def test_files_of_two_commits_are_not_mixed(hub: LocalHub, calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, token=hub.token)
    hub.after_download = lambda: hub.repositories[REPO].commit("main", {"notes": b"new"})
    with pytest.raises(CalibrationError, match="changed during the download"):
        Calibration.from_pretrained(REPO)
    hub.after_download = lambda: None
    assert Calibration.from_pretrained(REPO) == calibration


def test_a_subfolder_of_a_repository(hub: LocalHub, calibration: Calibration) -> None:
    calibration.push_to_hub(REPO, token=hub.token)
    repository = hub.repositories[REPO]
    flat = repository.files_at("main") or {}
    repository.commit("nested", {f"a/b/{name}": data for name, data in flat.items()})
    repository.commits[repository.branches["main"]] = {}
    assert Calibration.from_pretrained(REPO, subfolder="a/b", revision="nested") == calibration
    with pytest.raises(CalibrationError, match="Check the subfolder"):
        Calibration.from_pretrained(REPO, subfolder="c", revision="nested")


@pytest.mark.parametrize("name", ["someone/unknown", "a folder/that is/not there", "../up"])
def test_a_name_that_is_nothing_is_refused(hub: LocalHub, name: str) -> None:
    with pytest.raises(CalibrationError, match="neither a folder here nor a repository"):
        Calibration.from_pretrained(name)
