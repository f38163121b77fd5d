"""Discovery against models written here, whose branches are known by construction."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from calibri.errors import UnsupportedModelError
from calibri.pipelines.discovery.discover import discover
from calibri.pipelines.discovery.findings import Discovery
from calibri.pipelines.discovery.kinds import block_kinds
from calibri.pipelines.discovery.labels import stream_label
from calibri.pipelines.sites.find import find_sites
from calibri.runs.inspect import inspect
from calibri.sampling.scales.fold import Fused
from calibri.sampling.scales.scaler import Scaler
from tests.pipelines.bare_dit import BareDiT, Block, SelfAttention
from tests.tiny import randomise


def inputs(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(rows, 4, 8, 8, generator=generator)
    return latents, torch.linspace(0.2, 0.8, rows), torch.arange(rows)


def bare_dit() -> nn.Module:
    return randomise(BareDiT())


def found_in(model: nn.Module) -> Discovery:
    return discover(model, lambda: model(*inputs()))


def test_the_branches_of_a_bare_dit():
    found = found_in(bare_dit())
    names = [f"trunk.{b}.{branch}" for b in range(2) for branch in ("mixer", "mlp")]
    assert [site.name for site in found.sites] == names
    assert [site.layer for site in found.sites] == ["mixer", "mlp"] * 2
    assert {site.stream for site in found.sites} == {"visual"}
    assert all(site.gated and site.batch_axis == 0 for site in found.sites)
    folds = [target.path for site in found.sites for target in site.fold]
    assert folds == [f"trunk.{b}.{w}" for b in range(2) for w in ("mixer.proj", "mlp.2")]
    assert [site.name for site in found.outputs] == ["head.out"]
    assert [(b.block_class, b.members, b.is_identity) for b in found.blocks] == [("Block", 2, True)]
    assert all(f.influence > 1e-3 and f.nonlinearity < 1e-4 for f in found.findings)


def test_a_bare_module_is_calibrated_like_any_other_once_its_sites_are_assigned():
    model = bare_dit()
    with pytest.raises(UnsupportedModelError, match="discover"):
        find_sites(model)
    found_in(model).assign(model)
    assert inspect(model).counts == {"block": 2, "layer": 4, "gate": 4}
    scaler = Scaler(model)
    scales = 0.5 + torch.rand(1, 1, 5, generator=torch.Generator().manual_seed(2)).double()
    scaler.set(scales)
    with torch.no_grad():
        hooked = model(*inputs())
        scaler.remove()
        fused = Fused(model, scales[0, 0].tolist())
        torch.testing.assert_close(model(*inputs()), hooked, rtol=1e-5, atol=2e-6)
        fused.undo()
        assert not torch.allclose(model(*inputs()), hooked)


def test_blocks_that_differ_in_a_flag_alone_are_measured_apart():
    model = bare_dit()
    assert block_kinds(model) == [["trunk.0", "trunk.1"]]
    model.trunk[1].drops_text = True
    assert block_kinds(model) == [["trunk.0"], ["trunk.1"]]


def test_a_saved_result_can_be_corrected_and_read_back(tmp_path):
    model, path = bare_dit(), tmp_path / "sites.json"
    found = found_in(model)
    found.save(path)
    assert Discovery.load(path) == found
    content = json.loads(path.read_text())
    content["findings"] = [f for f in content["findings"] if f["site"]["path"] != "trunk.1.mlp"]
    content["findings"][0]["site"]["layer"] = "attn"
    path.write_text(json.dumps(content))
    Discovery.load(path).assign(model)
    assert [site.layer for site in find_sites(model)] == ["attn", "mlp", "mixer"]


def test_a_file_that_is_no_result_is_refused(tmp_path):
    path = tmp_path / "sites.json"
    path.write_text('{"transformer_class": "BareDiT"}')
    with pytest.raises(UnsupportedModelError, match="findings"):
        Discovery.load(path)
    with pytest.raises(UnsupportedModelError, match="nowhere"):
        Discovery.load(tmp_path / "nowhere.json")


def test_sites_of_another_model_are_refused():
    found = found_in(bare_dit())
    with pytest.raises(UnsupportedModelError, match="found in a BareDiT"):
        found.assign(nn.Linear(2, 2))
    shallow = randomise(BareDiT(depth=1))
    with pytest.raises(UnsupportedModelError, match=r"trunk\.1"):
        found.assign(shallow)


def test_a_model_in_half_precision_is_refused():
    with pytest.raises(UnsupportedModelError, match="float32"):
        discover(bare_dit().to(torch.bfloat16), lambda: None)


def test_a_run_that_misses_the_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="did not call"):
        discover(bare_dit(), lambda: None)


class PostNormBlock(Block):
    """The sublayers' outputs are normalised before they are added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.after_a, self.after_b = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        gates = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gates[0].tanh() * self.after_a(self.mixer(self.norm_a(x)))
        return x + gates[1].tanh() * self.after_b(self.mlp(self.norm_b(x)))


class UngatedBlock(Block):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.mixer(self.norm_a(x) + c[:, None])
        return x + self.mlp(self.norm_b(x))


class ReplacingBlock(Block):
    """No residual block at all: its output does not carry its input on."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.mlp(self.norm_b(self.mixer(self.norm_a(x))))


class BentBlock(Block):
    """Sends what the MLP returns through tanh, so no scale of it is the scale of a gate."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = x + self.mixer(self.norm_a(x) + c[:, None])
        return x + self.mlp(self.norm_b(x)).tanh()


class MappingBlock(Block):
    """Maps the stream before it adds to it, so it is not the identity without its branches."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return super().forward(0.5 * x, c)


def with_blocks(block: type[Block]) -> nn.Module:
    model = BareDiT()
    model.trunk = nn.ModuleList(block(16, 2) for _ in range(2))
    return randomise(model)


def test_the_post_norm_is_the_branch_and_takes_the_fold():
    found = found_in(with_blocks(PostNormBlock))
    assert [s.name for s in found.sites[:2]] == ["trunk.0.after_a", "trunk.0.after_b"]
    assert [s.fold[0].path for s in found.sites[:2]] == ["trunk.0.after_a", "trunk.0.after_b"]


def test_a_branch_without_a_gate_is_told_from_one_with():
    assert not any(site.gated for site in found_in(with_blocks(UngatedBlock)).sites)


@pytest.mark.parametrize("block", [ReplacingBlock, BentBlock])
def test_what_is_no_linear_branch_of_a_residual_stream_is_not_found(block):
    with pytest.raises(UnsupportedModelError, match="residual branch"):
        found_in(with_blocks(block))


def test_a_block_that_is_not_the_identity_without_its_branches_is_doubted():
    model = with_blocks(Block)
    model.trunk[1] = randomise(MappingBlock(16, 2), seed=5)
    found = found_in(model)
    assert {site.block for site in found.sites} == {"trunk.0"}
    assert {finding.site.name for finding in found.doubtful} == {"trunk.1.mixer", "trunk.1.mlp"}
    assert [block.is_identity for block in found.blocks] == [True, False]


class SharedProjection(SelfAttention):
    """Sends two halves of the sequence through one linear and returns them apart."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = super().forward(x).chunk(2, dim=1)
        return first, second


class TwoStreamBlock(Block):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mixer = SharedProjection(width, heads)

    def forward(self, x: Tensor, c: Tensor, text: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, text = x if isinstance(x, tuple) else (x, x)
        first, second = self.mixer(torch.cat([x, text], dim=1) + c[:, None])
        return x + first, text + second


class LastOfTwo(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = with_blocks(TwoStreamBlock)
        head = self.base.head.forward
        self.base.head.forward = lambda x, c: head(x[0] + x[1], c)

    def forward(self, *given: Tensor) -> Tensor:
        return self.base(*given)


def test_a_linear_shared_by_two_outputs_takes_no_fold():
    sites = found_in(LastOfTwo()).sites
    assert [s.name.rpartition(".")[2] for s in sites] == ["mixer[0]", "mixer[1]"] * 2
    assert not any(s.fold for s in sites)
    assert all("scale this output alone" in s.no_fold for s in sites)


def test_the_stream_is_named_after_the_input_that_the_branch_adds_to():
    assert [stream_label([["hidden_states"]]), stream_label([["encoder_hidden_states"]])] == [
        "visual",
        "text",
    ]
    assert stream_label([["audio_hidden_states"]]) == "audio"
    assert stream_label([["hidden_states"], ["encoder_hidden_states"]]) == "joint"
    assert stream_label([["hidden_states", "encoder_hidden_states"]]) == "joint"


class ResidualHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = BareDiT()

    def forward(self, latents: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        return latents + self.model(latents, times, labels)


def test_a_model_that_returns_its_input_plus_something_has_no_output_weight():
    with pytest.raises(UnsupportedModelError, match="No layer"):
        found_in(randomise(ResidualHead()))
