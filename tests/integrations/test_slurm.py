"""The script for Slurm, with processes of this machine for its nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibri.results import RunSummary
from tests.scoring.ray_nodes import family_of, left_behind
from tests.tiny import TINY_RUN

pytest.importorskip("ray", reason="Ray is not installed: pip install 'calibri[ray]'")
pytestmark = [pytest.mark.end_to_end]

SCRIPT = Path(__file__).parents[2] / "integrations" / "slurm" / "calibrate.sbatch"
# `srun --overlap [--option value] command`, on a node that is this machine.
SRUN = """#!/bin/bash
echo "$@" >> "$CALLS"
shift
while [[ $1 == --* ]]; do shift 2; done
exec "$@"
"""
TOOLS = {
    "scontrol": "#!/bin/sh\nprintf 'one\\ntwo\\n'\n",
    "srun": SRUN,
    "calibri": f"#!{sys.executable}\nfrom calibri.cli.app import main\nmain()\n",
    "ray": f"#!{sys.executable}\nfrom ray.scripts.scripts import main\nmain()\n",
}


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job with two nodes, of one core each."""
    for name, text in TOOLS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "SLURM_JOB_ID": str(os.getpid() % 10000),
        "SLURM_JOB_NODELIST": "[one-two]",
        "SLURM_CPUS_PER_TASK": "1",
        "OMP_NUM_THREADS": "1",
        "CALIBRI_RUN": "job",
        "CALIBRI_RUNS": str(tmp_path / "runs"),
    }


def submit(env, **settings):
    pairs = [f"{key}={json.dumps(value)}" for key, value in (TINY_RUN | settings).items()]
    words = [word for pair in pairs if "workers" not in pair for word in ("--set", pair)]
    return subprocess.Popen(
        ["bash", SCRIPT, *words],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_job_stops_when_its_time_is_over_and_goes_on_when_it_is_requeued(slurm, tmp_path):
    longer = {"search.generations": 3, "search.bucket_size": 8, "sampling.batch_size": 2}
    journal = tmp_path / "runs" / "job" / "journal.jsonl"
    job = submit(slurm, **longer)
    while not (journal.exists() and journal.read_text().count('"digest"') > 3):
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.2)
    family = family_of(job)
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=120)[0]
    assert job.returncode == 130
    assert "calibri resume" in said
    assert not left_behind(family, 30)
    again = submit(slurm)
    said = again.communicate(timeout=500)[0]
    assert again.returncode == 0, said
    RunSummary.model_validate_json((tmp_path / "runs" / "job" / "results.json").read_text())
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2
    assert all("--nodelist two" in call for call in calls)
