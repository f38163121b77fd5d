"""Joining a Ray cluster, or starting one on this machine; the only module that needs Ray itself."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from calibri.errors import ConfigError, first_line

ADDRESS = "RAY_ADDRESS"
_SECONDS = 5.0


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise ConfigError(
            f"sampling.workers is 'ray', and Ray cannot be imported ({first_line(error)}). Install "
            "it with: pip install 'calibri[ray]'"
        ) from error
    return ray


def check_connection() -> None:
    """Find out in seconds whether a cluster can be had at all: Ray itself tries for minutes.

    Raises:
        ConfigError: Ray is missing, or nothing answers where the cluster should be.
    """
    ray = import_ray()
    address = os.environ.get(ADDRESS, "")
    if ray.is_initialized() or address in ("", "auto", "local"):
        return
    if "://" in address:
        raise ConfigError(
            f"{ADDRESS} is '{address}', an address of Ray Client, with which Calibri does not "
            "work. Start the run on a node of the cluster, with the host:port of its head."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{ADDRESS} is '{address}'. It should be the host:port of the head node.")
    try:
        reach(address)
    except OSError as error:
        raise ConfigError(
            f"No Ray cluster answers at {ADDRESS} '{address}': {error}. Is its head running, and "
            f"is the port open? Unset {ADDRESS} to start Ray on this machine alone."
        ) from error


def reach(address: str) -> None:
    """Open a connection to a head and close it.

    Raises:
        OSError: nothing answers there within seconds.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()


@contextlib.contextmanager
def connection() -> Iterator[tuple[Any, str | None]]:
    """Join the cluster at ``RAY_ADDRESS``, or start one on this machine that ends with the block.

    A program that has joined a cluster itself stays in it.

    Yields:
        The module ``ray``, and the address of the cluster's page of this program where it has one.

    Raises:
        ConfigError: there is none.
    """
    check_connection()
    ray = import_ray()
    if ray.is_initialized():
        yield ray, None
        return
    address = os.environ.get(ADDRESS) or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _own_signals():
        try:
            context = ray.init(address=address, **options)
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"Ray cannot be used with the address '{address}': {first_line(error)}. This "
                "machine must be a node of the cluster, and have its versions of Ray and of Python "
                f"({sys.version.split()[0]}, Ray {ray.__version__} here). If the head said that it "
                "asks for a token, as newer versions of Ray do, set RAY_AUTH_MODE=token here, too."
            ) from error
    try:
        yield ray, _page(ray, context.dashboard_url)
    finally:
        ray.shutdown()


def _page(ray: Any, dashboard: str | None) -> str | None:
    if not dashboard:
        return None
    return f"http://{dashboard}/#/jobs/{ray.get_runtime_context().get_job_id()}"


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep Ray from replacing what a signal does in this program."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
