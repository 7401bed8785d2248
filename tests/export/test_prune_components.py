"""Pruning: dead components go and nothing changes, living ones do not; one Gaussian left is a plain convolution."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from cbn_deploy.checkpoint import load_checkpoint, save_checkpoint
from cbn_deploy.errors import DataError
from cbn_deploy.norm import CompoundBatchNorm2d, DualPathBatchNorm2d, NormConfig, freeze
from cbn_deploy.norm.statistics import TAU_FLOOR
from cbn_deploy.runtime.description import Preprocessing
from export import ExportOptions, export_checkpoint, to_onnx
from export.cli import main
from export.inputs import ParityInputs
from export.op import DOMAIN
from export.passes import AttachFunctionsPass, FoldSingleGaussianPass
from export.prune_components import DEFAULT_THRESHOLD, LayerPruning, prune_components
from export.render import summary_table
from tests.export.conftest import FEW
from tests.export.graphs import op_types, run
from tests.export.op_cases import run_onnxruntime
from tests.export.test_fold_linear import answers, with_constants
from tests.reference.tolerances import tolerance

OPTIONS = ExportOptions(inputs=FEW, prune_threshold=DEFAULT_THRESHOLD)
State = dict[str, torch.Tensor]


def with_state(source: Path, target: Path, change: Callable[[State], None]) -> Path:
    """A copy of a checkpoint with other tensors."""
    checkpoint = load_checkpoint(source)
    state = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    change(state)
    save_checkpoint(target, dataclasses.replace(checkpoint, state_dict=state))
    return target


def kill(state: State, layers: list[str], components: list[int], tau: float) -> None:
    """Components of prior ``tau`` that no pixel is near: 0, or far away at the floor."""
    for layer in layers:
        prior = state[f"{layer}.running_tau"]
        prior[components] = 0.0
        prior /= prior.sum()
        prior[components] = tau
        state[f"{layer}.running_tau"] = prior / prior.sum()
        state[f"{layer}.running_mean"][components] += 100.0


@pytest.fixture(scope="module")
def partly_dead(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Layers of 3, 2 and 1 living components, by tau = 0 and by the floor of training."""

    def change(state: State) -> None:
        kill(state, ["bn1"], [1], 0.0)
        kill(state, ["layer1.0.bn1", "layer3.0.bn1"], [0, 3], TAU_FLOOR)
        kill(state, ["layer1.0.bn2", "layer2.0.bn1", "layer3.2.bn2"], [0, 1, 3], TAU_FLOOR)

    return with_state(checkpoint_path, tmp_path_factory.mktemp("dead") / "model.pt", change)


KEPT = {"bn1": 3, "layer1.0.bn1": 2, "layer3.0.bn1": 2, "layer1.0.bn2": 1, "layer2.0.bn1": 1, "layer3.2.bn2": 1}


def test_dead_components_go_and_single_gaussians_become_convolutions(partly_dead: Path, tmp_path: Path) -> None:
    result = export_checkpoint(partly_dead, tmp_path / "pruned.onnx", OPTIONS)
    pruning = result.pruning
    assert pruning is not None
    assert {layer.layer: layer.kept for layer in pruning.layers if layer.kept < 4} == KEPT
    assert len(pruning.layers) == 19
    assert pruning.dropped == 1 + 2 * 2 + 3 * 3
    assert pruning.real_images == FEW // 2
    assert pruning.largest_move < 1e-3
    model = onnx.load(result.path)
    tables = {initializer.name: initializer.dims for initializer in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node if node.domain == DOMAIN}
    assert len(nodes) == 19 - 3
    for layer, kept in KEPT.items():
        if kept == 1:
            assert layer not in nodes
        else:
            (tau,) = (name for name in nodes[layer].input if name.endswith("tau"))
            assert list(tables[tau]) == [kept]
    # Two of the three end a block, where their activation and addition stand for themselves again.
    assert [node.op_type for node in model.graph.node if node.op_type in ("Relu", "Add")].count("Relu") == 3
    assert not {"Mul", "BatchNormalization"} & {node.op_type for node in model.graph.node}
    assert sum(len(node.input) == 3 for node in model.graph.node if node.op_type == "Conv") == 3
    unpruned = export_checkpoint(
        partly_dead, tmp_path / "whole.onnx", dataclasses.replace(OPTIONS, prune_threshold=None)
    )
    assert unpruned.pruning is None
    images = torch.randn(3, 3, 32, 32).numpy()
    found, expected = (run_onnxruntime(onnx.load(r.path), {"images": images})[0] for r in (result, unpruned))
    np.testing.assert_allclose(found, expected, atol=0.01 * max(1.0, float(np.abs(expected).max())))


def test_the_file_and_the_table_say_what_was_pruned(partly_dead: Path, tmp_path: Path) -> None:
    result = export_checkpoint(partly_dead, tmp_path / "pruned.onnx", OPTIONS)
    metadata = {entry.key: entry.value for entry in onnx.load(result.path).metadata_props}
    recorded = json.loads(metadata["cbn.parity"])["pruning"]
    assert {layer["layer"]: layer["kept"] for layer in recorded["layers"]} == KEPT
    assert recorded["dropped"] == 14
    assert recorded["limit"] == 0.01
    cells = dict(zip(*(column.cells for column in summary_table(result).columns), strict=True))
    assert cells["kept 1 of 4"] == "layer1.0.bn2, layer2.0.bn1, layer3.2.bn2"
    assert cells["kept 3 of 4"] == "bn1"
    assert "14 dead components" in cells["pruned"]


def test_a_light_component_that_pixels_claim_stays(checkpoint_path: Path, tmp_path: Path) -> None:
    """Its prior is at the floor, but no other Gaussian is anywhere near the pixels: the posterior is its own."""

    def change(state: State) -> None:
        kill(state, ["layer2.1.bn1"], [0, 1, 3], 0.3)
        state["layer2.1.bn1.running_tau"] = torch.tensor([1.0, 1.0, TAU_FLOOR, 1.0]) / 3

    far = with_state(checkpoint_path, tmp_path / "far.pt", change)
    pruning = export_checkpoint(far, tmp_path / "model.onnx", OPTIONS).pruning
    assert pruning is not None
    assert (pruning.dropped, pruning.claimed) == (0, 1)
    assert [layer.layer for layer in pruning.layers if layer.claimed] == ["layer2.1.bn1"]


def test_a_component_that_is_missed_is_not_pruned(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hardly any posterior, but a bias so large that even that little moves the logits."""

    def change(state: State) -> None:
        layer = "layer3.0.bn1"
        prior = torch.tensor([1.0, 1.0, 1.0, 1e-6])
        for table in ("running_mean", "running_var"):  # where the others are, so its posterior is its prior
            state[f"{layer}.{table}"][3] = state[f"{layer}.{table}"][:3].mean(0)
        state[f"{layer}.running_tau"] = prior / prior.sum()
        state[f"{layer}.bias"][3] = 1e8

    folder = tmp_path / "out"
    checkpoint = with_state(checkpoint_path, tmp_path / "loud.pt", change)
    arguments = [str(checkpoint), "-o", str(folder / "model.onnx"), "--prune-components"]
    monkeypatch.setattr(sys, "argv", ["cbn-export", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert "Without the 1 components whose prior is at most 0.000101 the logits of real images move" in sentence
    assert "nothing was written" in sentence
    assert not list(folder.glob("*"))


def test_a_threshold_without_pruning_is_refused(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cbn-export", str(checkpoint_path), "--prune-threshold", "0.1"])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert "--prune-components" in capsys.readouterr().err


def test_without_real_images_there_is_no_judgement(checkpoint_path: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.pt"
    save_checkpoint(bare, dataclasses.replace(load_checkpoint(checkpoint_path), sample_images=None))
    with pytest.raises(DataError, match="--data FOLDER"):
        export_checkpoint(bare, tmp_path / "model.onnx", OPTIONS)


def inputs(real: int = 16, size: int = 8) -> ParityInputs:
    preprocessing = Preprocessing(height=size, width=size, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    pixels = np.random.default_rng(0).integers(0, 256, (real, size, size, 3), dtype=np.uint8)
    return ParityInputs(preprocessing, pixels, FEW, 0)


def network(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def test_nothing_dead_changes_nothing() -> None:
    model = network(CompoundBatchNorm2d(3, NormConfig(components=4)))
    pruned, report = prune_components(model, inputs(), DEFAULT_THRESHOLD)
    assert (report.dropped, report.claimed, report.largest_move) == (0, 0, 0.0)
    assert pruned is not model
    assert pruned.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("make", [CompoundBatchNorm2d, lambda d, c: DualPathBatchNorm2d(d, torch.arange(5) % 4, c)])
def test_a_pruned_layer_is_the_layer_without_its_dead(make: Callable[[int, NormConfig], nn.Module]) -> None:
    torch.manual_seed(0)
    layer = make(3, NormConfig(components=4, density_scale=0.3, eps=1e-3))
    layer.running_tau = torch.tensor([0.5, 0.0, 0.3, 0.2])
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    model = network(layer)
    pruned, report = prune_components(model, inputs(), 0.0)
    assert report.layers == (LayerPruning(layer="0", components=4, kept=3, claimed=0),)
    assert isinstance(pruned[0], CompoundBatchNorm2d)
    torch.testing.assert_close(pruned[0].running_tau.sum(), torch.tensor(1.0))
    x = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(pruned[0](x), layer(x), **tolerance("float32 layer"))


def test_the_heaviest_component_stays_whatever_the_threshold() -> None:
    layer = CompoundBatchNorm2d(3, NormConfig(components=4))
    layer.running_tau = torch.tensor([0.2, 0.2, 0.35, 0.25])
    layer.running_mean[[0, 1, 3]] += 1000.0
    pruned, report = prune_components(network(layer), inputs(), 0.9)
    assert report.layers[0].kept == 1
    torch.testing.assert_close(pruned[0].running_mean, layer.running_mean[[2]])


def test_a_layer_in_two_places_is_pruned_in_both() -> None:
    layer = CompoundBatchNorm2d(3, NormConfig(components=4))
    layer.running_tau = torch.tensor([0.5, 0.0, 0.3, 0.2])
    pruned, report = prune_components(network(nn.Sequential(layer, nn.ReLU(), layer)), inputs(), 0.0)
    assert report.layers == (LayerPruning(layer="0.0", components=4, kept=3, claimed=0),)
    assert pruned[0][0] is pruned[0][2]
    assert len(pruned[0][0].running_tau) == 3


def test_impossible_arguments_are_refused() -> None:
    model = network(CompoundBatchNorm2d(3))
    for threshold in (-0.1, 1.0):
        with pytest.raises(ValueError, match="threshold"):
            prune_components(model, inputs(), threshold)
    with pytest.raises(ValueError, match="eval mode"):
        prune_components(model.train(), inputs(), 0.1)


class TestSingleGaussian:
    CBN = "cbn.CompoundBatchNormalization"

    def one(self, body: str, outputs: str = "") -> ir.Model:
        """Layer ``a`` with its first component alone; ``w`` and ``b`` are a convolution's."""
        rng = np.random.default_rng(3)
        constants = {"w": rng.normal(size=(3, 3, 1, 1)), "b": rng.normal(size=3)}
        used = {name: array for name, array in constants.items() if f", {name}" in body}
        model = with_constants(body, outputs, **used)
        for name, value in model.graph.initializers.items():
            if name.startswith("block.a"):
                array = value.const_value.numpy()[:1]
                value.const_value, value.shape = ir.Tensor(array, name=name), ir.Shape(array.shape)
        return model

    @pytest.mark.parametrize("conv", ["Conv (x, w)", "Conv (x, w, b)"])
    @pytest.mark.parametrize("epsilon", [1e-5, 0.5])
    def test_into_the_convolution(self, conv: str, epsilon: float) -> None:
        model = self.one(f"m = {conv}\n out = {self.CBN} <epsilon = {epsilon}> (m, {{a}})")
        expected = answers(model)
        assert FoldSingleGaussianPass()(model).modified
        assert op_types(model) == ["Conv"]
        np.testing.assert_allclose(answers(model), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("body", "outputs"),
        [
            ("out = {cbn} (x, {{a}})", ""),
            ("m = Conv (x, r)\n out = {cbn} (m, {{a}})", ""),
            ("m = Conv (x, w)\n n = {cbn} (m, {{a}})\n out = Add (m, n)", ""),
            ("m = Conv (x, w)\n out = {cbn} (m, {{a}})", "float[batch, 3, 4, 4] out, float[batch, 3, 4, 4] m"),
        ],
        ids=["no convolution", "weights are an input", "read by something else", "an output of the model"],
    )
    def test_elsewhere_it_is_batch_normalisation(self, body: str, outputs: str) -> None:
        model = self.one(body.format(cbn=self.CBN), outputs)
        if "r)" not in body:
            expected = answers(model)
        assert FoldSingleGaussianPass()(model).modified
        assert "BatchNormalization" in op_types(model)
        if "r)" not in body:
            np.testing.assert_allclose(answers(model), expected, rtol=1e-5, atol=1e-5)

    def test_more_than_one_component_and_posteriors_are_left_alone(self) -> None:
        for body in (f"out = {self.CBN} (x, {{b}})", f"out, p = {self.CBN} (x, {{a}})"):
            model = self.one(body) if "{a}" in body else with_constants(body)
            AttachFunctionsPass()(model)
            assert not FoldSingleGaussianPass()(model).modified
            assert run(model)

    def test_a_network_of_one_component_has_none_of_our_ops(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), CompoundBatchNorm2d(4, NormConfig(components=1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        with torch.no_grad():
            model(torch.randn(8, 3, 9, 9))
        frozen = freeze(model)
        assert not to_onnx(frozen, torch.zeros(1, 3, 9, 9)).functions
        with_posterior = to_onnx(frozen, torch.zeros(1, 3, 9, 9), with_posterior=True)
        assert [output.name for output in with_posterior.graph.output] == ["logits", "posterior.1"]
