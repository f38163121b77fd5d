"""``calibri publish``: what is told before the network is asked, and when it does not answer."""

import pytest

from calibri.artifact.calibration import Calibration


@pytest.fixture
def logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


def test_a_run_is_published(calibri, finished_run, logged_in):
    result = calibri("publish", finished_run, "me/made")
    assert result.exit_code == 0, result.output
    assert Calibration.from_pretrained("me/made") == Calibration.from_pretrained(finished_run)


@pytest.mark.parametrize("name", ["me", "me/a/b", "me/", "/a", "a b/c", "me/.git", "me/a--b", ""])
@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_name_is_checked_before_the_network_is_asked(
    name, options, calibri, finished_run, logged_in
):
    result = calibri("publish", finished_run, name, *options)
    assert result.exit_code == 3
    assert "cannot be the name of a repository" in result.stderr
    assert "user/name" in result.stderr
    assert logged_in.requests == []


def test_without_a_token_nothing_is_asked(calibri, finished_run, hub):
    result = calibri("publish", finished_run, "me/made")
    assert result.exit_code == 3
    assert "hf auth login" in result.stderr
    assert hub.requests == []


def test_a_hub_that_does_not_answer_is_no_fault_of_ours(calibri, finished_run, logged_in):
    logged_in.shutdown()
    logged_in.server_close()
    result = calibri("publish", finished_run, "me/made")
    assert result.exit_code == 3
    assert "could not be reached" in result.stderr
    assert "fault of Calibri" not in result.stderr


def test_a_dry_run_shows_the_page_and_uploads_nothing(calibri, finished_run, hub):
    result = calibri("publish", finished_run, "me/made", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("---\nlibrary_name: calibri")
    assert 'calibri.load(pipe, "me/made")' in result.stdout
    assert "Nothing was uploaded" in result.stderr
    assert hub.requests == []
