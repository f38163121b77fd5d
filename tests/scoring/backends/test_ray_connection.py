"""What is said where there is no Ray, or no cluster; none of it needs Ray to be installed."""

import socket
import sys
import time
import types

import pytest

from calibri.config import load_config
from calibri.errors import ConfigError
from calibri.prompts.sources import PromptSets
from calibri.runs.session import Session
from calibri.scoring.backends import ray_connection
from calibri.scoring.backends.ray_actors import check_versions
from calibri.scoring.backends.ray_connection import check_connection
from calibri.version import versions_here


@pytest.fixture
def some_ray(monkeypatch):
    ray = types.SimpleNamespace(is_initialized=lambda: False)
    monkeypatch.setattr(ray_connection, "import_ray", lambda: ray)


def test_without_ray_its_extra_is_named_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = load_config(values={"sampling.workers": "ray", "pipeline": "./nowhere"})
    with pytest.raises(ConfigError, match=r"pip install 'calibri\[ray\]'"):
        Session(config, PromptSets((), (), ()))


def test_a_cluster_that_does_not_answer_is_told_in_seconds(monkeypatch, some_ray):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(ConfigError, match="No Ray cluster answers at RAY_ADDRESS '127.0.0.1"):
            check_connection()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "head:port", "head:99999"])
def test_an_address_that_is_none_is_refused(monkeypatch, some_ray, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match="should be the host:port of the head node"):
        check_connection()


def test_ray_client_is_refused(monkeypatch, some_ray):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match="Start the run on a node of the cluster"):
        check_connection()


@pytest.mark.parametrize("address", [None, "", "local", "auto"])
def test_other_addresses_are_left_to_ray(monkeypatch, some_ray, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    check_connection()


def test_objects_are_not_for_the_nodes_of_a_cluster(some_ray, pipe):
    config = load_config(values={"sampling.workers": "ray", "device": "cpu"})
    with pytest.raises(ConfigError, match="sampling.workers is ray, but a pipeline or a reward"):
        Session(config, PromptSets((), (), ()), pipe=pipe)


def test_versions_that_differ_are_both_named():
    here = versions_here() | {"python": sys.version.split()[0]}
    here = {name: version.split("+")[0] for name, version in here.items()}
    check_versions(here, "n1")
    with pytest.raises(ConfigError, match=f"n1 .*torch {here['torch']} here and 1.0 there"):
        check_versions(here | {"torch": "1.0"}, "n1")
    del here["calibri"]
    with pytest.raises(ConfigError, match="calibri .* here and none there"):
        check_versions(here, "n1")


@pytest.mark.parametrize("dashboard", ["", None, "10.0.0.1:8265"])
def test_the_page_is_that_of_this_program_where_there_is_a_dashboard(monkeypatch, dashboard):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    context = types.SimpleNamespace(get_job_id=lambda: "02000000")
    ray = types.SimpleNamespace(
        is_initialized=lambda: False,
        init=lambda **options: types.SimpleNamespace(dashboard_url=dashboard),
        get_runtime_context=lambda: context,
        shutdown=lambda: None,
    )
    monkeypatch.setattr(ray_connection, "import_ray", lambda: ray)
    with ray_connection.connection() as (_, page):
        assert page == ("http://10.0.0.1:8265/#/jobs/02000000" if dashboard else None)
