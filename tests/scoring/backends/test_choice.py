"""Where units are computed."""

import os

import pytest
import torch

from calibri.scoring.backends.choice import choose_pool, worker_names


@pytest.mark.parametrize("images", [10, 10**5])
def test_a_process_has_as_many_threads_whatever_the_number_of_workers(monkeypatch, images):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    pools = [choose_pool("cpu", 10**7, images, workers) for workers in (1, 2, 3, None)]
    found = [(len(pool.devices), pool.threads) for pool in pools]
    # A run too short for workers keeps all threads, in this process when there is one worker.
    short = [(1, None), (2, 4), (3, 4), (1, None)]
    assert found == (short if images == 10 else [(1, 1), (2, 1), (3, 1), (4, 1)])


def test_workers_are_named_by_their_devices():
    assert worker_names(["cuda:0", "cuda:1"]) == ["cuda:0", "cuda:1"]
    assert worker_names(["cpu", "cpu", "cpu"]) == ["cpu 1", "cpu 2", "cpu 3"]
    assert worker_names(["mps"]) == ["mps"]
