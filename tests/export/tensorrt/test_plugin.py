"""The plugin for TensorRT, without TensorRT's core: its tables, graph and kernels, and NVIDIA's own Python layer."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from cbn_deploy.checkpoint import load_checkpoint, load_model
from cbn_deploy.errors import EngineError, RuntimeUnavailableError
from cbn_deploy.norm import freeze
from cbn_deploy.runtime.onnx_file import read_onnx_file
from export import ExportResult
from export.op import ADD_RELU, FORMS, PLAIN, RELU
from export.rounding import OpTables
from export.tensorrt import EngineOptions, build_engine
from export.tensorrt.compiler import load_compiler
from export.tensorrt.full import build_full, check_full, load_tensorrt
from export.tensorrt.pack_tables import PackTablesPass, packed_tables, plugin_name
from export.to_onnx import build_graph
from tests.export.op_cases import UNIT, Case, random_case
from tests.reference.tolerances import tolerance

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]


def has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


NEEDS_TRITON = pytest.mark.skipif(not has("triton"), reason="Triton is not installed")


def op_tables(case: Case) -> OpTables:
    return OpTables(**case.tables, epsilon=case.epsilon, density_scale=case.density_scale)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("extremity", [0.0, 0.6])
def test_packed_tables_are_the_function(seed: int, extremity: float) -> None:
    """The kernel's formula on the packed tables, in float64, against the definition of the op."""
    case = random_case(seed, 2, channels=5, components=3, spatial=(3, 2), extremity=extremity, alike=False)
    packed = packed_tables(op_tables(case))
    M, D = 3, 5
    assert packed.dtype == np.float32
    assert packed.shape == ((1 + 4 * M) * D + M,)
    m0, rows, k = packed[:D].astype(np.float64), packed[D:-M].reshape(M, 4, D).astype(np.float64), packed[-M:]
    P, Q, A, B = rows.transpose(1, 0, 2)
    c = np.moveaxis(case.x.astype(np.float64), 1, -1) - m0
    logits = (c * c) @ P.T + c @ Q.T + k
    w = np.exp2(logits - logits.max(-1, keepdims=True))
    w /= w.sum(-1, keepdims=True)
    y = np.moveaxis(c * (w @ A) + w @ B, -1, 1)
    reference = case.reference(PLAIN)
    assert (np.abs(y - reference.y) <= UNIT * reference.y_condition).all()
    dead = case.tables["tau"] == 0
    assert (k[dead] == -np.inf).all()
    assert not rows[dead].any()


@NEEDS_TRITON
@pytest.mark.parametrize("form", [PLAIN, RELU, ADD_RELU], ids=lambda form: form.op_type)
def test_the_kernel_on_packed_tables_is_the_op(form: Any, tmp_path: Path) -> None:
    """The Triton kernel itself, in its interpreter, reads the tables that the exporter packs."""
    case = random_case(7, 3, channels=6, components=4, spatial=(4, 5), extremity=0.0, alike=False)
    np.savez(tmp_path / "in.npz", x=case.x, residual=case.residual, tables=packed_tables(op_tables(case)))
    program = f"""
import numpy as np, torch
from cbn_deploy.kernels.triton.operator import forward
given = {{name: torch.from_numpy(value) for name, value in np.load({str(tmp_path / "in.npz")!r}).items()}}
residual = given["residual"] if {form.residual} else None
y, w = forward(given["x"], given["tables"], 4, residual=residual, relu={form.relu}, with_posterior=True)
np.savez({str(tmp_path / "out.npz")!r}, y=y.numpy(), w=w.numpy())
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    found, expected = np.load(tmp_path / "out.npz"), case.reference(form)
    assert (np.abs(found["y"] - expected.y) <= UNIT * expected.y_condition).all()
    assert (np.abs(found["w"] - expected.posterior) <= UNIT * expected.posterior_condition).all()


@pytest.fixture(scope="module")
def packed(exported: ExportResult) -> ir.Model:
    model = ir.serde.deserialize_model(onnx.load(exported.path))
    PackTablesPass()(model)
    return model


def test_the_graph_for_the_plugin(exported: ExportResult, packed: ir.Model) -> None:
    proto = ir.serde.serialize_model(packed)
    nodes = [node for node in proto.graph.node if node.domain == "cbn"]
    assert len(nodes) == 19
    assert not proto.functions  # nothing that could be built unnoticed in the plugin's place
    names = [node.name for node in onnx.load(exported.path).graph.node if node.domain == "cbn"]
    assert [node.name for node in nodes] == names
    constants = {initializer.name: initializer for initializer in proto.graph.initializer}
    for node in nodes:
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert attributes == {"components": 4, "plugin_namespace": b"cbn", "plugin_version": b"1", "aot": 1}
        assert len(node.input) == (3 if "Add" in node.op_type else 2)
        tables = onnx.numpy_helper.to_array(constants[node.input[-1]])
        assert tables.dtype == np.float32
        assert (tables.size - 4) % 17 == 0
    # What only the five tables used is gone.
    assert len(constants) < len(onnx.load(exported.path).graph.initializer)
    assert not any(name.endswith((".tau", ".mean", ".var", ".scale")) for name in constants)


def test_posteriors_are_second_outputs_of_plugins_of_their_own(checkpoint_path: Path) -> None:
    network = freeze(load_model(load_checkpoint(checkpoint_path)))
    graph = build_graph(network, torch.zeros(1, 3, 32, 32), with_posterior=True)
    PackTablesPass()(graph)
    nodes = [node for node in graph.graph if node.domain == "cbn"]
    assert {node.op_type for node in nodes} == {plugin_name(form, with_posterior=True) for form in (RELU, ADD_RELU)}
    assert [output.name for output in graph.graph.outputs][1:] == [node.outputs[1].name for node in nodes]


@NEEDS_TRITON
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_kernels_have_names_of_their_own_and_assemble(dtype: Any, channels_last: bool, tmp_path: Path) -> None:
    kernel = load_compiler()(
        dtype=dtype,
        components=4,
        channels=16,
        pixels=64,
        channels_last=channels_last,
        residual=True,
        relu=True,
        posterior=False,
        images=8,
    )
    assert kernel.contract.entry == kernel.contract.spec.name
    check_entry(kernel.ptx, kernel.contract.entry, pointers=4)
    assembler = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin/ptxas"  # type: ignore[union-attr, arg-type]
    if not assembler.is_file():
        pytest.skip("this Triton brings no ptxas")
    (tmp_path / "kernel.ptx").write_text(kernel.ptx)
    command = [str(assembler), "--gpu-name", "sm_80", "kernel.ptx", "-o", "kernel.cubin"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)


def check_entry(ptx: str, name: str, pointers: int) -> None:
    """Inputs, three integers, outputs, and nothing after them."""
    entry = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", ptx)
    assert entry is not None
    assert entry[1] == name
    types = [parameter.split()[1] for parameter in entry[2].split(",")]
    assert sorted(types) == [".u32"] * 3 + [".u64"] * pointers
    first = types.index(".u32")
    assert types[first : first + 3] == [".u32"] * 3


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the libraries that tensorrt_bindings asks for, made of TensorRT-RTX's."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not (has("tensorrt_bindings") and has("tensorrt_rtx_libs") and has("triton")) or compiler is None:
        pytest.skip("needs tensorrt-cu13-bindings, tensorrt-rtx-cu13-libs, Triton and a C compiler")
    folder = tmp_path_factory.mktemp("libraries")
    for name in ("libnvinfer", "libnvonnxparser", "libnvinfer_plugin"):
        library = f"{name}.so.11"
        source = HERE / "libnvinfer_stand_in.c" if name == "libnvinfer" else "/dev/null"
        command = [
            compiler,
            "-shared",
            "-fPIC",
            "-x",
            "c",
            str(source),
            "-o",
            library,
            f"-Wl,-soname,{library}",
            "-ldl",
        ]
        subprocess.run(command, cwd=folder, check=True, timeout=60)
    return folder


@pytest.fixture(scope="module")
def nvidia(stand_in: Path, exported: ExportResult, packed: ir.Model) -> dict[str, Any]:
    """What NVIDIA's Python layer made of our plugin (nvidia_layer.py), in a process of its own."""
    graph = stand_in / "packed.onnx"
    graph.write_bytes(ir.serde.serialize_model(packed).SerializeToString())
    libraries = Path(importlib.util.find_spec("tensorrt_rtx_libs").origin).parent  # type: ignore[union-attr, arg-type]
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{stand_in}:{libraries}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "nvidia_layer.py"), str(exported.path), str(graph)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return result


def test_every_form_passes_registration(nvidia: dict[str, Any]) -> None:
    """register, autotune and aot_impl check the functions' names, order and types; the registry keeps the creators."""
    expected = {plugin_name(form, with_posterior=flag) for form in FORMS.values() for flag in (False, True)}
    assert set(nvidia["names"]) == expected


def test_the_parser_prefers_the_plugin_once_it_is_registered(nvidia: dict[str, Any]) -> None:
    assert nvidia["before"]["parsed"]  # as the function body
    assert nvidia["before"]["as_function"] > 0
    assert nvidia["before"]["as_plugin"] == 0
    for file in ("original", "packed"):
        assert nvidia[file]["as_plugin"] > 0
        assert nvidia[file]["as_function"] == 0
        # As far as it goes here: TensorRT-RTX has no plugins of this kind, TensorRT has.
        assert "TensorRT-RTX imports" in nvidia[file]["errors"][0]


def test_the_builder_is_called_as_these_bindings_want_it(nvidia: dict[str, Any]) -> None:
    """The portable body, through TensorRT's own bindings; what builds it is TensorRT-RTX's library."""
    assert nvidia["portable_engine_bytes"] > 1_000_000
    assert nvidia["portable_engine_inputs"] == [["images", "float32", [None, 3, 32, 32]]]


def test_types_shapes_and_layouts(nvidia: dict[str, Any]) -> None:
    trt_types = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
    for case, found in nvidia["driven"].items():
        name, dtype, _ = case.split()
        data, outputs = trt_types[dtype], 2 if name.endswith("Posterior") else 1
        assert found["output_types"] == [data, "FLOAT"][:outputs]
        assert found["output_shapes"] == [[5, 16, 8, 8], [5, 4, 8, 8]][:outputs]
        values = len(found["combinations"]) // 2
        assert values == (3 if "Add" in name else 2) + outputs
        dense = "HWC" if dtype == "float32" else "HWC8"
        for layout, combination in zip(("LINEAR", dense), np.reshape(found["combinations"], (2, values)), strict=True):
            expected = [f"{data} {layout}"] * values
            expected[2 if "Add" in name else 1] = "FLOAT LINEAR"  # the tables
            if outputs == 2:
                expected[-1] = "FLOAT LINEAR"
            assert list(combination) == expected


def test_launches_follow_the_contract(nvidia: dict[str, Any]) -> None:
    """For batches of 1, 8 and 32: pixel_count, channels and pixels; enough blocks for every pixel and not one more."""
    kernels = set()
    for case, found in nvidia["driven"].items():
        name, _, layout = case.split()
        counts = [64, 512, 2048]
        assert found["arguments"] == [counts, [16] * 3, [64] * 3]
        assert found["argument_types"] == ["INT32"] * 3
        launch = found["launch"]
        block_pixels = int(re.search(r"_p(\d+)_", found["kernel"])[1])  # type: ignore[index]
        assert launch["grid_x"] == [-(-count // block_pixels) for count in counts]
        assert launch["grid_y"] == launch["grid_z"] == launch["block_y"] == launch["block_z"] == [1] * 3
        threads = int(re.search(r"\.reqntid\s+(\d+)", found["ptx"])[1])  # type: ignore[index]
        assert launch["block_x"] == [threads] * 3
        assert ("channels_last" in found["kernel"]) == (layout != "LINEAR")
        check_entry(found["ptx"], found["kernel"], pointers=3 + ("Add" in name) + name.endswith("Posterior"))
        kernels.add(found["kernel"])
    assert len(kernels) == len(nvidia["driven"])


def full(**changes: Any) -> EngineOptions:
    return EngineOptions(runtime="tensorrt", **changes)


def test_without_tensorrt_one_sentence_says_what_to_install(
    exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeUnavailableError, match=r"TensorRT is not installed .* pip install tensorrt-cu13"):
        build_engine(exported.path, tmp_path / "model.engine", full())
    assert not list(tmp_path.iterdir())


def test_compute_capabilities_are_for_tensorrt_rtx() -> None:
    with pytest.raises(EngineError, match="for the GPU that it finds"):
        check_full(full(compute_capabilities=("8.9",)))


class OldTensorRt:
    __version__ = "10.14.1"


def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", OldTensorRt())  # type: ignore[arg-type]
    with pytest.raises(RuntimeUnavailableError, match=r"10\.14\.1 is too old; install 10\.15 or newer"):
        load_tensorrt()


def test_without_triton_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cbn_deploy.kernels.triton.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeUnavailableError, match=r"Triton, which is not installed .* --inline"):
        load_compiler()


@pytest.mark.skipif(not has("tensorrt"), reason="TensorRT is not installed")
def test_an_engine_with_the_plugin(exported: ExportResult, tmp_path: Path) -> None:
    """On a machine with TensorRT and a GPU: built with the plugin, it answers as onnxruntime does."""
    from cbn_deploy.runtime.factory import open_session

    try:
        check_full(full())
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    build = build_full(read_onnx_file(exported.path), full(), tmp_path / "timing", None)
    assert build.implementation == "plugin"
    result = build_engine(exported.path, tmp_path / "model.engine", full())
    images = np.random.default_rng(0).standard_normal((33, 3, 32, 32)).astype(np.float32)
    with open_session(result.path) as session, open_session(exported.path) as reference:
        assert session.describe().kernel_path == "fused"
        np.testing.assert_allclose(
            session.run(images).logits, reference.run(images).logits, **tolerance("runtime model")
        )
