"""What a worker process does with its input."""

import io
import json

import pytest
import torch

from calibri.errors import RewardError
from calibri.scoring.backends.local import Local
from calibri.scoring.backends.worker import serve
from tests.scoring.sample_units import configured, units_of


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RewardError("no weights"), "no weights"),
        (torch.OutOfMemoryError("CUDA out of memory"), "do not fit on 'cpu': CUDA out of memory"),
    ],
)
def test_a_worker_that_cannot_load_tries_once_and_says_why(candidates, error, says):
    tries = []

    def load(config):
        tries.append(config)
        raise error

    unit = json.dumps(units_of(candidates)[0][1].to_json())
    greeting = json.dumps({"config": configured(1).model_dump(mode="json"), "threads": 1})
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join([greeting, unit, unit]).encode()), answers, load)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert len(tries) == 1
    assert len(found) == 2
    assert all(says in answer["message"] for answer in found)


def test_a_worker_answers_units_in_order_and_leaves_when_its_input_ends(session, candidates):
    units = units_of(candidates[:2])
    greeting = {"config": configured(1).model_dump(mode="json"), "threads": 1}
    lines = [json.dumps(line) for line in (greeting, *(unit.to_json() for _, unit in units))]
    answers = io.BytesIO()
    serve(io.BytesIO("\n".join(lines).encode()), answers)
    alone = dict(Local(session.bench).run(units))
    found = [json.loads(line)["result"] for line in answers.getvalue().splitlines()]
    assert found == list(alone.values())
