"""The parity gate: what it reports for a right file, and that a wrong one does not pass."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.errors import ParityError
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import freeze
from export import ExportResult
from export.inputs import REAL, ParityInputs
from export.limits import LIMITS
from export.logit_parity import LogitComparison
from export.op_sites import OpSite, find_sites, tap
from export.parity import SEED, check_parity
from export.to_onnx import build_graph
from tests.export.conftest import FEW


@pytest.fixture(scope="module")
def model(checkpoint_path: Path) -> nn.Module:
    return load_model(load_checkpoint(checkpoint_path))


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> ir.Model:
    return build_graph(freeze(model), torch.zeros(1, 3, 32, 32))


@pytest.fixture(scope="module")
def sites(graph: ir.Model) -> list[OpSite]:
    return find_sites(graph)


@pytest.fixture
def proto(graph: ir.Model) -> onnx.ModelProto:
    return ir.serde.serialize_model(graph)


@pytest.fixture(scope="module")
def inputs(checkpoint_path: Path) -> ParityInputs:
    checkpoint = load_checkpoint(checkpoint_path)
    assert checkpoint.sample_images is not None
    return ParityInputs(checkpoint.description.preprocessing, checkpoint.sample_images.numpy(), FEW, SEED)


def test_the_full_gate_s_report(exported: ExportResult) -> None:
    report = exported.parity
    assert report.inputs == 256
    assert report.real_images == 64
    assert report.top1_agreement == 1.0
    assert (report.overflows, report.ties) == (0, 0)
    assert 0 < report.eager_rounding_real < LIMITS["logits"].value
    assert len(report.ops) == 19
    for op in report.ops:
        assert op.max_error > 0
        assert 0 < op.of_limit < 1
        assert op.values >= 256 * 64 * 16
    rows = {(row.reference, row.group): row for row in report.logits}
    assert len(rows) == (6 if native_library() is None else 8)
    assert rows["eager float32", "real images"].inputs == 64
    assert rows["eager float32", "extremes"].inputs == 192
    assert rows["eager float64", "batch of one"].inputs == 16
    assert (("eager float32", "all, native kernels") in rows) == (native_library() is not None)
    assert all(0 < row.of_limit < 1 for row in rows.values())
    assert json.loads(json.dumps(report.to_dict()))["limits"] == {name: row.value for name, row in LIMITS.items()}


def test_progress_reaches_the_end(model: nn.Module, proto: onnx.ModelProto, inputs: ParityInputs) -> None:
    seen: list[tuple[int, int]] = []
    check_parity(model, proto, [], inputs, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (FEW, FEW)
    assert seen == sorted(seen)


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_classifier_fails_on_the_logits(
    model: nn.Module, proto: onnx.ModelProto, sites: list[OpSite], inputs: ParityInputs, factor: float
) -> None:
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == "fc.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(factor), weight.name))
    with pytest.raises(ParityError, match="logits differ from eager float"):
        check_parity(model, proto, sites, inputs)


def test_a_wrong_table_fails_on_the_logits(
    model: nn.Module, proto: onnx.ModelProto, sites: list[OpSite], inputs: ParityInputs
) -> None:
    # Both the file and what the gate knows about its nodes are wrong: only the checkpoint tells.
    (mean,) = [tensor for tensor in proto.graph.initializer if tensor.name == "layer2.1.bn1.mean"]
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + np.float32(0.01), mean.name))
    wrong = find_sites(ir.serde.deserialize_model(proto))
    with pytest.raises(ParityError, match="logits differ"):
        check_parity(model, proto, wrong, inputs)


def test_a_wrong_node_is_named(
    model: nn.Module, proto: onnx.ModelProto, sites: list[OpSite], inputs: ParityInputs
) -> None:
    (node,) = [node for node in proto.graph.node if node.name == "layer3.1.bn2"]
    (density_scale,) = [attribute for attribute in node.attribute if attribute.name == "density_scale"]
    density_scale.f *= 1.1
    with pytest.raises(ParityError, match=r"node layer3\.1\.bn2 \(CompoundBatchNormalizationAddRelu\) differs"):
        check_parity(model, proto, sites, inputs)


def test_a_diverged_checkpoint_is_told_apart(proto: onnx.ModelProto, model: nn.Module, inputs: ParityInputs) -> None:
    broken = freeze(model)
    broken.fc.bias.fill_(torch.inf)
    with pytest.raises(ParityError, match="checkpoint's own logits are not finite"):
        check_parity(broken, proto, [], inputs)


def test_tap_adds_what_every_node_reads_and_writes(proto: onnx.ModelProto, sites: list[OpSite]) -> None:
    tapped = tap(proto, sites)
    names = {output.name for output in tapped.graph.output}
    assert len(proto.graph.output) == 1
    for site in sites:
        assert {site.x, site.y} <= names
        assert (site.residual in names) == site.form.residual


def comparison(exported: np.ndarray, eager32: np.ndarray, eager64: np.ndarray, kind: str = REAL) -> LogitComparison:
    count = len(exported)
    return LogitComparison(
        kinds=np.array([kind] * count),
        exported=exported,
        single=exported[:1],
        single_indices=np.array([0]),
        eager32=eager32,
        eager64=eager64,
    )


class Amplifier(nn.Module):
    """Adds to float32's and float64's answers what rounding would have become in a chaotic network."""

    def __init__(self, network: nn.Module, single: float, double: float) -> None:
        super().__init__()
        self.network, self.factors = network, {torch.float32: single, torch.float64: double}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(x)
        return logits * self.factors[x.dtype]


@pytest.mark.parametrize(("single", "double"), [(1.001, 1.0), (1.00005, 1.00012)], ids=["beyond", "close to"])
def test_a_network_that_amplifies_rounding_is_told_apart(
    model: nn.Module, proto: onnx.ModelProto, inputs: ParityInputs, single: float, double: float
) -> None:
    """Its float32 errs beyond the limit, or so close to it that the file's rounding and its own together pass it."""
    amplifier = Amplifier(model, single, double)
    with pytest.raises(ParityError, match=r"network amplifies rounding.*--allow-rounding"):
        check_parity(amplifier, proto, [], inputs)
    assert check_parity(amplifier, proto, [], inputs, allow_rounding=True).rounding_allowed


def test_allow_rounding_allows_no_more_than_rounding(
    model: nn.Module, proto: onnx.ModelProto, inputs: ParityInputs
) -> None:
    """A wrong table, which only the logits can show, in the file of a network that amplifies."""
    (mean,) = [tensor for tensor in proto.graph.initializer if tensor.name == "layer2.1.bn1.mean"]
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + np.float32(0.1), mean.name))
    wrong = find_sites(ir.serde.deserialize_model(proto))
    with pytest.raises(ParityError, match="exported logits differ"):
        check_parity(Amplifier(model, 1.001, 1.0), proto, wrong, inputs, allow_rounding=True)


def test_allow_rounding_loosens_nothing_for_a_network_that_does_not_amplify(
    model: nn.Module, proto: onnx.ModelProto, inputs: ParityInputs
) -> None:
    with pytest.raises(ParityError, match="exported logits differ"):
        check_parity(Amplifier(model, 1.001, 1.001), proto, [], inputs, allow_rounding=True)


class TestLogitComparison:
    def test_the_limit_is_absolute_below_one_and_relative_above(self) -> None:
        exact = np.array([[0.5, -0.2], [40.0, -3.0]])
        np.testing.assert_allclose(comparison(exact, exact, exact).limits(), [1e-4, 40e-4])

    def test_eager_s_own_rounding_widens_the_limit_of_extremes_and_of_images_if_asked(self) -> None:
        exact = np.array([[0.5, -0.2], [0.4, 0.1]])
        rough = exact + np.array([[1e-3, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(comparison(exact, rough, exact, "white").limits(), 4e-3)
        real = comparison(exact, rough, exact)
        np.testing.assert_allclose(real.limits(), 1e-4)
        np.testing.assert_allclose(dataclasses.replace(real, allow_rounding=True).limits(), 4e-3)

    def test_native_kernels_are_judged_like_the_portable_body(self) -> None:
        exact = np.array([[0.5, -0.2], [0.4, 0.1]])
        good = comparison(exact, exact, exact)
        assert max(row.of_limit for row in dataclasses.replace(good, fused=exact).rows()) == 0
        assert max(row.of_limit for row in dataclasses.replace(good, fused=exact + 1e-3).rows()) > 1

    def test_top1_of_a_clear_winner_must_agree(self) -> None:
        exact = np.array([[1.0, 0.0], [0.0, 1.0]])
        everyone = np.array([True, True])
        assert comparison(exact[:, ::-1], exact, exact).top1(everyone) == (0.0, 0)
        assert comparison(exact, exact, exact).top1(everyone) == (1.0, 0)

    def test_a_tie_may_fall_either_way(self) -> None:
        exact = np.array([[1.0, 1.0 - 1e-5], [1.0, 0.0]])
        found = np.array([[1.0 - 1e-5, 1.0], [1.0, 0.0]])
        assert comparison(found, exact, exact).top1(np.array([True, True])) == (1.0, 1)

    def test_inputs_on_which_eager_overflows_are_left_out(self) -> None:
        exact = np.array([[1.0, 0.0], [0.3, 0.1]])
        overflowing = np.array([[np.inf, 0.0], [0.3, 0.1]])
        logits = comparison(exact, overflowing, exact)
        assert logits.finite.tolist() == [False, True]
        assert {row.inputs for row in logits.rows()} == {1}
