"""The trainer of alignments: on policy at first, and going on where it stopped."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from calibri.pipelines.loading import load_pipeline

TRAINING = Path(__file__).parents[2] / "training"
TINY = (
    "--reward jpeg-compressibility --groups 2 --group-size 3 --batch-size 6 --steps 3 --rank 2 "
    "--alpha 4 --learning-rate 0.01 --workers 1 --num-evaluated 2 --evaluate-every 1 --epochs 2"
)


@pytest.fixture(scope="module")
def module():
    sys.path.insert(0, str(TRAINING))
    try:
        import align_pipeline

        yield align_pipeline
    finally:
        sys.path.remove(str(TRAINING))


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory):
    place = (tmp_path_factory.mktemp("processes") / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=place, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def job(module, tmp_path):
    return module.parse([*TINY.split(), f"--output={tmp_path}/lora", f"--log={tmp_path}/log.jsonl"])


def test_the_first_update_of_an_epoch_is_on_policy_and_the_next_one_is_not(module, job):
    trainer = module.Trainer(replace(job, divergence=0.5), 0)
    batches = [trainer._sampled(part) for part in trainer._parts(trainer._groups())]
    spread = trainer._spread(batches)
    assert float(spread) == pytest.approx(
        float(torch.cat([b.rewards.flatten() for b in batches]).std(correction=0)), rel=1e-4
    )
    first = trainer._backward(batches[0], spread, 3)
    assert first["clipped"] == 0
    assert first["divergence"] == 0
    assert float(trainer.adapter.flat.grad.norm()) > 0
    for _ in range(3):
        trainer.adapter.step()
    second = trainer._backward(batches[1], spread, 3)
    assert second["clipped"] > 0
    assert second["divergence"] > 0


def test_an_interrupted_training_ends_as_an_undisturbed_one(module, job, tmp_path):
    module.Trainer(job, 0).train()
    whole = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    again = replace(job, output=tmp_path / "again", log=tmp_path / "again.jsonl")
    module.Trainer(replace(again, epochs=1), 0).train()
    module.Trainer(again, 0).train()
    resumed = load_file(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, resumed[name])
    assert any("lora_B" in name and tensor.any() for name, tensor in whole.items())
    lines = [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2]
    changed = load_pipeline("shapes", lora=str(tmp_path / "lora"), device="cpu").transformer
    plain = load_pipeline("shapes", device="cpu").transformer
    own = dict(plain.named_parameters())
    moved = [name for name, p in changed.named_parameters() if not torch.equal(p, own[name])]
    assert moved
    assert all(".attn." in name for name in moved)
    with pytest.raises(SystemExit, match="other settings"):
        module.Trainer(replace(again, rank=4), 0).train()
