"""Int8 networks with 8-bit channels-last tensors around the op's nodes: the same answers but for rounding ties."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.data import load_digits_lt
from cbn_deploy.native_library import native_library
from cbn_deploy.norm import freeze
from cbn_deploy.runtime import native_layouts
from cbn_deploy.runtime.channels_last import CHANNELS_LAST_OP_DOMAIN, keep_channels_last
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.native_layouts import native_layout_session
from cbn_deploy.runtime.preprocessing import normalize, resize
from export import ExportResult
from export.op import DOMAIN
from export.precision.int8 import quantize_int8
from export.to_onnx import build_graph
from tests.export.precision.conftest import PREPROCESSING
from tests.export.test_blocked_layout import norm, options, planar_answers
from tests.reference.tolerances import tolerance

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
FEED = normalize(IMAGES, PREPROCESSING)


@pytest.fixture(autouse=True)
def _needs_the_library() -> None:
    if native_library() is None:
        pytest.skip("the native library was not built")


def conv(channels: int, **rest: int) -> nn.Conv2d:
    return nn.Conv2d(channels, rest.pop("wide", channels), 3, padding=1, bias=False, **rest)


class Network(nn.Module):
    """Convolution, layer, convolution, layer, and what a test puts after them; the first convolution stays float32."""

    def __init__(
        self,
        rest: Callable[[Tensor], Tensor],
        channels: int = 32,
        components: int = 4,
        shortcut: Callable[[Tensor], Tensor] | None = None,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, wide=channels), norm(channels)
        self.conv2, self.bn2 = conv(channels, stride=stride), norm(channels, components)
        self.shortcut, self.rest = shortcut, rest

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        y = self.bn2(self.conv2(x))
        y = torch.relu(y + self.shortcut(x)) if self.shortcut is not None else y
        return self.rest(y).mean((2, 3))


class Branches(nn.Module):
    """Two convolutions, or a convolution and something else, read the same value."""

    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)], 1)


class Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


# A network, and how many of its nodes are replaced.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "read by a convolution": (lambda: Network(conv(32)), 1),
    "activated": (lambda: Network(nn.Sequential(nn.ReLU(), conv(32))), 1),
    "read by nothing quantised": (lambda: Network(torch.sin), 0),
    "read by two convolutions": (lambda: Network(Branches(conv(32), conv(32, wide=16))), 1),
    "read by a convolution and a planar op": (lambda: Network(Branches(conv(32), Sine())), 1),
    "pooled": (lambda: Network(nn.Sequential(nn.MaxPool2d(2), conv(32))), 1),
    "a grouped convolution": (lambda: Network(conv(32, groups=32)), 1),
    "four layers": (lambda: Network(nn.Sequential(nn.ReLU(), conv(32), norm(32), nn.ReLU(), conv(32))), 2),
    "channels that fill no vector": (lambda: Network(conv(20), channels=20), 0),
    "channels of another number": (lambda: Network(conv(48), channels=48), 1),
    "many components": (lambda: Network(conv(32), components=11), 1),
    "a shortcut": (lambda: Network(conv(32), shortcut=lambda x: x), 1),
    "a planar shortcut": (lambda: Network(conv(32), shortcut=torch.sin), 0),
    "a shortcut that skips pixels": (lambda: Network(conv(32), shortcut=lambda x: x[:, :, ::2, ::2], stride=2), 1),
}


def quantized(module: nn.Module, *, with_posterior: bool = False) -> bytes:
    graph = build_graph(freeze(module.eval()), torch.from_numpy(FEED[:1]), with_posterior=with_posterior)
    content: bytes = ir.serde.serialize_model(quantize_int8(graph, IMAGES, PREPROCESSING)).SerializeToString()
    return content


def rewritten(content: bytes, folder: Path) -> tuple[int, onnx.ModelProto]:
    made = options()
    made.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(content, made, providers=["CPUExecutionProvider"])
    model = onnx.load(made.optimized_model_filepath)
    count = keep_channels_last(model)
    onnx.checker.check_model(model)
    assert count == sum(node.domain == CHANNELS_LAST_OP_DOMAIN for node in model.graph.node)
    return count, model


def optimized(content: bytes, folder: Path) -> onnx.ModelProto:
    made = options()
    made.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(content, made, providers=["CPUExecutionProvider"])
    return onnx.load(made.optimized_model_filepath)


def nearly_equal(found: NDArray[np.float32], planar: NDArray[np.float32]) -> None:
    largest = np.abs(planar).max()
    np.testing.assert_allclose(found / largest, planar / largest, **tolerance("rounding ties"))


def replaced(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.domain == CHANNELS_LAST_OP_DOMAIN]


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_differ_by_rounding_ties_only(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, count = NETWORKS[name]
    content = quantized(make())
    model = optimized(content, tmp_path)
    assert keep_channels_last(model) == count
    assert len(replaced(model)) == count
    onnx.checker.check_model(model)
    session, _ = native_layout_session(content, options)
    (now,), (planar,) = session.run(None, {"images": FEED}), planar_answers(content, FEED)
    nearly_equal(now, planar)


def test_a_node_whose_posterior_is_asked_for_stays(tmp_path: Path) -> None:
    torch.manual_seed(0)
    content = quantized(Network(conv(32)), with_posterior=True)
    assert keep_channels_last(optimized(content, tmp_path)) == 0
    session, _ = native_layout_session(content, options)
    for now, planar in zip(session.run(None, {"images": FEED}), planar_answers(content, FEED), strict=True):
        np.testing.assert_allclose(now, planar, **tolerance("runtime float32"))


@pytest.fixture(scope="module")
def four_layers() -> bytes:
    torch.manual_seed(1)
    return quantized(NETWORKS["four layers"][0]())


def an_output(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))


def read_as_it_is(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Relu", [node.output[0]], ["again"]))


def read_in_other_steps(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
    (scale,) = [table for table in model.graph.initializer if table.name == reader.input[1]]
    coarse = onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), "coarse")
    model.graph.initializer.append(coarse)
    names = [node.output[0], "coarse", reader.input[2]]
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", names, ["again"]))


def signed(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
    (zero,) = [table for table in model.graph.initializer if table.name == reader.input[2]]
    zero.CopyFrom(onnx.numpy_helper.from_array(np.array(3, np.int8), zero.name))


def without_zero_point(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
    del reader.input[2]


def with_computed_tables(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    node.input[-1] = "computed"


CHANGES = [an_output, read_as_it_is, read_in_other_steps, signed, without_zero_point, with_computed_tables]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_does_not_fit_stays(
    change: Callable[[onnx.ModelProto, onnx.NodeProto], None], four_layers: bytes, tmp_path: Path
) -> None:
    model = optimized(four_layers, tmp_path)
    second = [node for node in model.graph.node if node.domain == DOMAIN][1]
    change(model, second)
    assert keep_channels_last(model) == 1
    assert second.name not in {node.name for node in replaced(model)}


def test_without_the_blocked_layout_8_bit_tensors_are_still_kept(
    four_layers: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_layouts, "block_channels", lambda: None)
    session, block = native_layout_session(four_layers, options)
    assert block is None
    planar = planar_answers(four_layers, FEED)[0]
    now = session.run(None, {"images": FEED})[0]
    nearly_equal(now, planar)


@pytest.mark.parametrize("attribute", ["x_zero", "y_zero", "x_scale", "y_scale"])
def test_wrong_answers_are_noticed(
    attribute: str, four_layers: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(model: onnx.ModelProto) -> int:
        count = keep_channels_last(model)
        for found in (a for node in replaced(model) for a in node.attribute if a.name == attribute):
            found.CopyFrom(onnx.helper.make_attribute(attribute, found.f * 2 if found.f else found.i // 2 + 30))
        return count

    monkeypatch.setattr(native_layouts, "keep_channels_last", spoil)
    with caplog.at_level(logging.WARNING):
        session, block = native_layout_session(four_layers, options)
    assert block is None
    assert "does not give the same answers" in caplog.text
    np.testing.assert_array_equal(session.run(None, {"images": FEED})[0], planar_answers(four_layers, FEED)[0])


@pytest.mark.parametrize(
    "change",
    [{"x_scale": 0.0}, {"y_scale": -1.0}, {"x_zero": 256}, {"y_zero": -1}, {"y_zero": None}, {"x_scale": None}],
    ids=str,
)
def test_a_node_with_wrong_steps_is_refused(
    change: dict[str, float | int | None], four_layers: bytes, tmp_path: Path
) -> None:
    model = optimized(four_layers, tmp_path)
    keep_channels_last(model)
    ((name, value),) = change.items()
    node = replaced(model)[0]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(onnx.helper.make_attribute(name, value))
    with pytest.raises(Exception, match=f"{name[0]}_scale must be above zero"):
        onnxruntime.InferenceSession(model.SerializeToString(), options(), providers=["CPUExecutionProvider"])


def test_an_exported_network_names_the_same_digits(int8: ExportResult, tmp_path: Path) -> None:
    content = int8.path.read_bytes()
    model = optimized(content, tmp_path)
    # All but the first, which reads a float32 convolution, the last, which is averaged, and two whose shortcuts are
    # filled up with zeros.
    assert keep_channels_last(model) == sum(node.domain == DOMAIN for node in onnx.load(int8.path).graph.node) - 4
    test = load_digits_lt().test
    images = normalize(np.stack([resize(test.image(i), PREPROCESSING) for i in range(200)]), PREPROCESSING)
    with open_session(int8.path, threads=2) as session:
        found = session.run(images).logits
    planar = planar_answers(content, images)[0]
    # A tie is rare, and what it changes goes through the layers after it.
    assert (found == planar).all(1).mean() > 0.9
    np.testing.assert_array_equal(found.argmax(1), planar.argmax(1))
    nearly_equal(found, planar)
