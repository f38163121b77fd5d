import itertools
import time

import pytest
import torch

from calibri.config import load_config
from calibri.planning.throughput import MACHINES, machine_here, measure


def test_compiled_is_never_slower_than_eager():
    for machine in MACHINES.values():
        eager, compiled = machine.speeds
        assert eager.low <= eager.high <= compiled.high
        assert eager.low <= compiled.low <= compiled.high


def test_what_is_measured_is_flops_over_seconds(monkeypatch):
    # Calls that take 1, 2 and 4 seconds by this clock.
    clock = itertools.chain([0.0, 1.0, 1.0, 3.0, 3.0, 7.0], itertools.repeat(7.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    config = load_config(values={"sampling.batch_size": 3, "device": "cpu"})
    speed = measure(config, 8e12)
    assert (speed.low, speed.high) == (3 * 8 / 4, 3 * 8 / 1)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA T4", None),
    ],
)
def test_a_gpu_is_found_by_its_name(monkeypatch, name, title):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    machine = machine_here()
    assert (machine.title if machine else None) == title


def test_a_cpu_is_no_machine_of_the_table(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine_here() is None
