"""Networks in onnxruntime's blocked layout: the same answers, whatever stands around the op's nodes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.native_library import native_library
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, freeze
from cbn_deploy.runtime import native_layouts
from cbn_deploy.runtime.blocked_layout import BLOCKED_OP_DOMAIN, block_channels, keep_blocked
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.native_layouts import native_layout_session
from export import ExportResult
from export.op import DOMAIN
from export.to_onnx import to_onnx
from tests.reference.tolerances import tolerance


@pytest.fixture(autouse=True)
def _needs_the_layout() -> None:
    if native_library() is None:
        pytest.skip("the native library was not built")
    if block_channels() is None:
        pytest.skip("this onnxruntime has no blocked layout")


def options() -> onnxruntime.SessionOptions:
    library = native_library()
    assert library is not None
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 4
    made.register_custom_ops_library(str(library.path))
    return made


def planar_answers(content: bytes, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(content, options(), providers=["CPUExecutionProvider"])
    answers: list[NDArray[np.float32]] = session.run(None, {"images": images})
    return answers


def replaced_nodes(content: bytes, folder: Path) -> int:
    made = options()
    made.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(content, made, providers=["CPUExecutionProvider"])
    model = onnx.load(made.optimized_model_filepath)
    block = block_channels()
    assert block is not None
    count = keep_blocked(model, block)
    kinds = [(node.domain, node.op_type) for node in model.graph.node]
    assert count == 0 or ("", "MaxPool") not in kinds
    onnx.checker.check_model(model)
    assert count == sum(node.domain == BLOCKED_OP_DOMAIN for node in model.graph.node)
    return count


def norm(channels: int, components: int = 4) -> CompoundBatchNorm2d:
    layer = CompoundBatchNorm2d(channels, NormConfig(components=components))
    with torch.no_grad():
        for table in (layer.weight, layer.bias, layer.running_mean):
            table.copy_(torch.randn_like(table))
        layer.running_var.copy_(torch.rand_like(layer.running_var) + 0.3)
    return layer


class Stem(nn.Module):
    """A convolution and the layer, then what a test puts there."""

    def __init__(self, channels: int, rest: Callable[[Tensor], Tensor], components: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn = norm(channels, components)
        self.rest = rest

    def forward(self, images: Tensor) -> Tensor:
        return self.rest(self.bn(self.conv(images))).mean((2, 3))


class Residual(nn.Module):
    """A block whose shortcut is what `shortcut` makes of the stem: planar, blocked, or both."""

    def __init__(self, shortcut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn1, self.bn2 = norm(32), norm(32)
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(images)))
        return torch.relu(self.bn2(self.conv2(x)) + self.shortcut(x)).mean((2, 3))


def conv(channels: int, **rest: int) -> nn.Conv2d:
    return nn.Conv2d(channels, 32, 3, padding=1, bias=False, **rest)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "read by a convolution": (lambda: Stem(32, conv(32)), 1),
    "read by a pooling": (lambda: Stem(32, nn.Sequential(nn.MaxPool2d(3, 2, 1), conv(32))), 1),
    "pooled with ceiling": (lambda: Stem(32, nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), conv(32))), 1),
    "pooled, then planar": (lambda: Stem(32, lambda x: torch.sin(nn.functional.max_pool2d(x, 3, 1, dilation=2))), 1),
    "pooled on average": (lambda: Stem(32, nn.Sequential(nn.AvgPool2d(3, 2), conv(32))), 1),
    "read by a planar op": (lambda: Stem(32, torch.sin), 1),
    "read by several": (lambda: Stem(32, lambda x: torch.cat([torch.sin(x), torch.relu(x)], 1)), 1),
    "a depthwise convolution": (lambda: Stem(32, conv(32, groups=32)), 1),
    "activated twice": (lambda: Stem(48, lambda x: torch.relu(x) * x), 1),
    "channels that fill no block": (lambda: Stem(20, conv(20)), 0),
    "many components": (lambda: Stem(32, conv(32), components=11), 1),
    "a shortcut from the stem": (lambda: Residual(lambda x: x), 2),
    "a planar shortcut": (lambda: Residual(torch.sin), 2),
    "a shortcut through both": (lambda: Residual(lambda x: x.flip(2) + x), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("with_posterior", [False, True])
def test_the_layout_changes_no_answer(name: str, with_posterior: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, count = NETWORKS[name]
    module = make().eval()
    frozen = freeze(module)
    content = to_onnx(frozen, torch.randn(1, 3, 9, 11), with_posterior=with_posterior).SerializeToString()
    assert replaced_nodes(content, tmp_path) == count
    session, block = native_layout_session(content, options)
    assert block == (block_channels() if count else None)
    images = torch.randn(3, 3, 9, 11)
    found = session.run(None, {"images": images.numpy()})
    for now, planar in zip(found, planar_answers(content, images.numpy()), strict=True):
        np.testing.assert_allclose(now, planar, **tolerance("runtime float32"))
    with torch.no_grad():
        expected = module.double()(images.double()).numpy()
    np.testing.assert_allclose(found[0], expected, **tolerance("runtime model"))


def test_a_whole_network_runs_blocked(exported: ExportResult, tmp_path: Path) -> None:
    content = exported.path.read_bytes()
    layers = sum(node.domain == DOMAIN for node in onnx.load(exported.path).graph.node)
    assert replaced_nodes(content, tmp_path) == layers
    with open_session(exported.path, threads=2) as session:
        assert session.describe().block == block_channels()
        images = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
        planar = planar_answers(content, images)[0]
        np.testing.assert_allclose(session.run(images).logits, planar, **tolerance("runtime model"))


@pytest.fixture
def content() -> bytes:
    torch.manual_seed(1)
    return to_onnx(freeze(Stem(32, conv(32)).eval()), torch.randn(1, 3, 8, 8)).SerializeToString()


IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)


def falls_back(content: bytes) -> None:
    session, block = native_layout_session(content, options)
    assert block is None
    np.testing.assert_array_equal(session.run(None, {"images": IMAGES})[0], planar_answers(content, IMAGES)[0])


def test_without_the_layout_tensors_are_reordered(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_layouts, "block_channels", lambda: None)
    falls_back(content)


def test_without_room_for_a_temporary_file(
    content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_layouts.tempfile, "tempdir", "/proc/no/such/folder")
    with caplog.at_level(logging.WARNING):
        falls_back(content)
    assert "Tensors are reordered around the op" in caplog.text


@pytest.mark.parametrize("wrong", [lambda block: 24 - block, lambda _: 4], ids=["the other", "a third"])
def test_a_layout_that_is_not_the_one_we_know_is_noticed(
    wrong: Callable[[int], int], content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    block = block_channels()
    assert block is not None
    monkeypatch.setattr(native_layouts, "block_channels", lambda: wrong(block))
    with caplog.at_level(logging.WARNING):
        falls_back(content)
    assert "Tensors are reordered around the op" in caplog.text


def test_wrong_answers_are_noticed(
    content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = native_layouts.keep_blocked

    def spoil(model: onnx.ModelProto, block: int) -> int:
        count = right(model, block)
        for node in model.graph.node:
            if node.domain == BLOCKED_OP_DOMAIN:
                # As a runtime would whose layout has changed: the channels are not where they are looked for.
                node.input[2], node.input[-1] = node.input[-1], node.input[2]
        return count

    monkeypatch.setattr(native_layouts, "keep_blocked", spoil)
    with caplog.at_level(logging.WARNING):
        falls_back(content)
    assert "does not give the same answers" in caplog.text


def test_without_the_onnx_package_the_model_still_runs_fused(
    exported: ExportResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "cbn_deploy.runtime.native_layouts")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with open_session(exported.path) as session:
        info = session.describe()
        assert (info.kernel_path, info.block) == ("fused", None)
        assert np.isfinite(session.run(np.zeros((1, 3, 32, 32), np.float32)).logits).all()


def test_sixteen_sessions_open_and_run_at_once(content: bytes) -> None:
    expected = planar_answers(content, IMAGES)[0]

    def life(_: int) -> list[NDArray[np.float32]]:
        session, block = native_layout_session(content, options)
        assert block == block_channels()
        return [session.run(None, {"images": IMAGES})[0] for _ in range(5)]

    with ThreadPoolExecutor(16) as pool:
        for answers in pool.map(life, range(16)):
            for answer in answers:
                np.testing.assert_allclose(answer, expected, **tolerance("runtime float32"))
