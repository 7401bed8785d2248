"""onnxruntime's CUDA op without a GPU: the op itself in onnxruntime, its driver a stand-in that computes on the CPU.

What this proves: what the op reads from onnxruntime, and every byte that it gives to the CUDA driver. What it cannot
prove: anything about a GPU, and that onnxruntime's CUDA provider takes the op.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from cbn_deploy.cuda_kernels import register_folder, register_kernel
from cbn_deploy.errors import RuntimeUnavailableError, SettingsError
from cbn_deploy.kernels.triton.contract import ITEM_SIZES, DataType, KernelSpec, LaunchContract
from cbn_deploy.kernels.triton.launch import forward_launch
from cbn_deploy.native_interface import CudaKernel
from cbn_deploy.native_library import UINT8, NativeLibrary, native_library
from cbn_deploy.runtime import onnxruntime_cuda_session
from cbn_deploy.runtime.factory import open_session
from export import ExportResult
from export.op import ADD_RELU, FORMS, PLAIN, RELU, OpForm
from tests.export.op_cases import UNIT, Case, op_model, random_case
from tests.export.test_native_op import node_model
from tests.export.test_op import check
from tests.reference.tolerances import TOLERANCES

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "tests" / "cbn_deploy" / "kernels" / "cuda_stand_in"
NATIVE = ROOT / "cbn_deploy" / "kernels" / "native"
# Kernels stay registered for the life of the process: a test that counts them, or registers one that cannot run, has
# numbers of channels of its own, which fill their pieces, so that no other test's kernel suits better.
EVERY_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.op_type)


class Record(ctypes.Structure):
    """``struct record`` of the stand-in."""

    _fields_ = (
        *(
            (name, ctypes.c_long)
            for name in (
                *("modules_loaded", "modules_alive", "allocations", "allocations_alive", "launches"),
                *("synchronizations", "contexts_retained", "grid", "block", "shared_bytes", "granted_shared_bytes"),
                "parameters",
            )
        ),
        ("stream", ctypes.c_void_p),
        ("images", ctypes.c_long),
        ("channels", ctypes.c_long),
        ("pixels", ctypes.c_long),
        ("entry", ctypes.c_char * 256),
    )


@dataclass(frozen=True)
class StandIn:
    """The compiled stand-ins, and libcbn."""

    library: NativeLibrary
    driver: Path
    ops: Path

    @property
    def record(self) -> Record:
        """What the driver has seen; lives on."""
        return Record.in_dll(ctypes.CDLL(str(self.driver)), "stand_in_record")

    def session(self, model: onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(self.ops))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs: list[np.ndarray] = self.session(model).run(None, feeds)
        return outputs


@pytest.fixture(scope="session")
def compiled_stand_in(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    if shutil.which("gcc") is None or shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("the stand-ins need gcc and g++ on Linux")
    folder = tmp_path_factory.mktemp("cuda")
    driver, ops = folder / "libcuda.so", folder / "libops.so"
    shared = ["-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o"]
    subprocess.run(["gcc", "-std=gnu11", *shared, driver, SOURCES / "libcuda.c", "-lm"], check=True)
    options = ["-std=c++17", f"-I{NATIVE}", f'-DLIBCBN="{library.path}"']
    subprocess.run(["g++", *options, *shared, ops, SOURCES / "cuda_op_on_cpu.cpp", "-ldl"], check=True)
    return StandIn(library, driver, ops)


@pytest.fixture
def stand_in(compiled_stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("CBN_CUDA_DRIVER", str(compiled_stand_in.driver))
    yield compiled_stand_in
    # Sessions end with their tests, and leave nothing on the GPU.
    record = compiled_stand_in.record
    assert (record.modules_alive, record.allocations_alive) == (0, 0)


def contract(
    form: OpForm,
    components: int,
    channels: int,
    pixels: int,
    *,
    posterior: bool = True,
    dtype: DataType = "float32",
    images: int | None = None,
    shared_bytes: int = 64,
) -> LaunchContract:
    """What the compiler would say of the layer's kernel."""
    launch = forward_launch(
        components=components,
        channels=channels,
        pixels=pixels,
        item_size=ITEM_SIZES[dtype],
        channels_last=False,
        pixel_count=None if images is None else images * pixels,
    )
    spec = KernelSpec(
        dtype=dtype,
        components=components,
        channels_last=False,
        residual=form.residual,
        relu=form.relu,
        posterior=posterior,
        launch=launch,
    )
    return LaunchContract(
        entry=spec.name,
        target="sm_80",
        ptx_version="8.0",
        spec=spec,
        threads=32 * launch.warps,
        shared_bytes=shared_bytes,
    )


def declaration(kernel: LaunchContract) -> str:
    """What the stand-in reads of a kernel's PTX."""
    types = ["u32" if parameter.type == "int32" else "u64" for parameter in kernel.spec.parameters]
    parameters = ",\n".join(f".param .{name} p{index}" for index, name in enumerate(types))
    return f".version 8.0\n.target sm_80\n.visible .entry {kernel.entry}(\n{parameters}\n)\n{{ ret; }}\n"


def give(stand_in: StandIn, kernel: LaunchContract) -> LaunchContract:
    register_kernel(stand_in.library, kernel.to_json(), declaration(kernel))
    return kernel


@EVERY_FORM
@settings(max_examples=40, deadline=None)
@given(
    case=st.builds(
        random_case,
        seed=st.integers(0, 2**32 - 1),
        batch=st.integers(1, 5),
        channels=st.integers(1, 70),
        components=st.integers(1, 16),
        spatial=st.sampled_from([(), (1,), (7,), (3, 5), (2, 1, 3), (7, 7), (16, 16), (45, 31)]),
        extremity=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
        alike=st.booleans(),
    )
)
def test_what_the_driver_is_given_computes_the_formula(compiled_stand_in: StandIn, form: OpForm, case: Case) -> None:
    os.environ["CBN_CUDA_DRIVER"] = str(compiled_stand_in.driver)  # a fixture would last for one example only
    give(compiled_stand_in, contract(form, len(case.tables["tau"]), case.x.shape[1], int(np.prod(case.x.shape[2:]))))
    check(case, form, compiled_stand_in.run(op_model(case, form), case.feeds(form)))


@EVERY_FORM
@pytest.mark.parametrize("with_posterior", [False, True])
@pytest.mark.parametrize(
    ("dtype", "number", "numpy_type"),
    [("float16", TensorProto.FLOAT16, np.float16), ("bfloat16", TensorProto.BFLOAT16, ml_dtypes.bfloat16)],
)
def test_half_precision(
    stand_in: StandIn, form: OpForm, dtype: DataType, number: int, numpy_type: type, with_posterior: bool
) -> None:
    case = random_case(5, 2, 12, 4, (5, 13), 0.3, alike=False)
    typed = {"x": case.x, "residual": case.residual}
    case = replace(case, **{name: value.astype(numpy_type).astype(np.float32) for name, value in typed.items()})
    give(stand_in, contract(form, 4, 12, 65, dtype=dtype, posterior=with_posterior))
    outputs = stand_in.run(op_model(case, form, dtype=number, with_posterior=with_posterior), case.feeds(form))
    expected, tolerance = case.reference(form), TOLERANCES[f"op {dtype}"]
    allowed = UNIT * expected.y_condition + tolerance.rtol * np.abs(expected.y) + tolerance.atol
    assert (np.abs(outputs[0] - expected.y) <= allowed).all()
    assert len(outputs) == 1 + with_posterior


def test_a_launch_is_what_the_contract_says(stand_in: StandIn) -> None:
    case = random_case(1, 3, 20, 4, (9, 8), 0.0, alike=False)
    kernel = give(stand_in, contract(ADD_RELU, 4, 20, 72, shared_bytes=60_000))
    session, record = stand_in.session(op_model(case, ADD_RELU)), stand_in.record
    before = record.launches, record.allocations, record.synchronizations
    for _ in range(3):
        check(case, ADD_RELU, session.run(None, case.feeds(ADD_RELU)))
    # A run launches once, and neither allocates nor waits.
    assert (record.launches, record.allocations, record.synchronizations) == (before[0] + 3, *before[1:])
    assert record.entry.decode() == kernel.entry
    assert record.grid == kernel.spec.launch.programs(3 * 72)
    assert (record.block, record.shared_bytes) == (kernel.threads, 60_000)
    assert record.granted_shared_bytes == 60_000  # beyond 48 KiB a kernel must ask
    assert record.parameters == len(kernel.spec.parameters) == 8
    assert (record.images, record.channels, record.pixels) == (3, 20, 72)
    stream = ctypes.CDLL(str(stand_in.ops)).stand_in_stream
    stream.restype = ctypes.c_void_p
    assert record.stream == stream()


def test_layers_share_a_kernel_and_sessions_leave_nothing(stand_in: StandIn) -> None:
    case = random_case(2, 2, 128, 3, (4, 4), 0.0, alike=False)
    give(stand_in, contract(PLAIN, 3, 128, 16))
    record = stand_in.record
    before = record.modules_loaded
    sessions = [stand_in.session(op_model(case, PLAIN)) for _ in range(4)]
    assert record.modules_loaded - before == record.modules_alive == 1
    assert record.allocations_alive == 4
    with ThreadPoolExecutor(4) as pool:
        for outputs in pool.map(lambda session: session.run(None, case.feeds(PLAIN)), sessions * 4):
            check(case, PLAIN, outputs)
    del sessions


def test_the_widest_accesses_and_enough_programs_are_chosen(stand_in: StandIn) -> None:
    many, few = (contract(RELU, 4, 31, 1024, posterior=False, images=images) for images in (None, 1))
    odd = contract(RELU, 4, 31, 1, posterior=False)
    assert many.spec.launch.block_pixels > few.spec.launch.block_pixels
    assert (many.spec.launch.vector, odd.spec.launch.vector) == (4, 1)
    for kernel in (odd, few, many):
        give(stand_in, kernel)
    case = random_case(3, 1, 31, 4, (1,), 0.0, alike=False)
    session = stand_in.session(node_model(case, RELU, None, outputs=1))
    for shape, kernel in (((64, 31, 32, 32), many), ((1, 31, 32, 32), few), ((2, 31, 5, 5), odd)):
        session.run(None, {"X": np.ones(shape, np.float32)})
        assert stand_in.record.entry.decode() == kernel.entry


def test_a_kernel_for_exactly_these_channels_is_chosen(stand_in: StandIn) -> None:
    exact, masked = (contract(PLAIN, 5, channels, 4) for channels in (96, 95))
    assert (exact.most_channels, exact.spec.launch.full) == (masked.most_channels, not masked.spec.launch.full)
    for kernel in (masked, exact):
        give(stand_in, kernel)
    case = random_case(4, 1, 96, 5, (2, 2), 0.0, alike=False)
    check(case, PLAIN, stand_in.run(op_model(case, PLAIN), case.feeds(PLAIN)))
    assert stand_in.record.entry.decode() == exact.entry


def test_a_kernel_for_the_same_use_is_replaced(stand_in: StandIn) -> None:
    case = random_case(4, 1, 128, 2, (2, 2), 0.0, alike=False)
    first = give(stand_in, contract(PLAIN, 2, 128, 4))
    give(stand_in, replace(first, entry=f"{first.entry}_again"))
    check(case, PLAIN, stand_in.run(op_model(case, PLAIN), case.feeds(PLAIN)))
    assert stand_in.record.entry.decode() == f"{first.entry}_again"


def test_a_kernel_given_again_is_not_loaded_again(stand_in: StandIn) -> None:
    case = random_case(4, 1, 256, 2, (2, 2), 0.0, alike=False)
    give(stand_in, contract(PLAIN, 2, 256, 4))
    first = stand_in.session(op_model(case, PLAIN))
    loaded = stand_in.record.modules_loaded
    give(stand_in, contract(PLAIN, 2, 256, 4))
    check(case, PLAIN, stand_in.run(op_model(case, PLAIN), case.feeds(PLAIN)))
    assert stand_in.record.modules_loaded == loaded
    del first


def test_an_empty_batch_launches_nothing(stand_in: StandIn) -> None:
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    give(stand_in, contract(PLAIN, 2, 3, 20))
    before = stand_in.record.launches
    y, posterior = stand_in.run(node_model(case, PLAIN, None), {"X": case.x[:0]})
    assert (y.shape, posterior.shape) == ((0, 3, 4, 5), (0, 2, 4, 5))
    assert stand_in.record.launches == before


def test_a_thread_without_a_context_takes_the_first_gpu(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_NO_CONTEXT", "1")
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    give(stand_in, contract(PLAIN, 2, 3, 20))
    before = stand_in.record.contexts_retained
    check(case, PLAIN, stand_in.run(op_model(case, PLAIN), case.feeds(PLAIN)))
    assert stand_in.record.contexts_retained > before


def test_tables_must_be_initializers(stand_in: StandIn) -> None:
    case = random_case(0, 2, 3, 2, (4, 5), 0.0, alike=False)
    with pytest.raises(Exception, match="on CUDA tau, mean, var, scale and bias must be initializers"):
        stand_in.session(node_model(case, PLAIN, None, tables_as_inputs=True))


def test_a_layer_without_a_kernel_is_one_sentence(stand_in: StandIn) -> None:
    case = random_case(0, 2, 384, 13, (4, 5), 0.0, alike=False)
    sentence = (
        "no CUDA kernel was compiled for float32, 13 components, 384 channels, with residual and ReLU; install Triton"
    )
    with pytest.raises(Exception, match=sentence):
        stand_in.session(op_model(case, ADD_RELU))
    give(stand_in, contract(ADD_RELU, 13, 384, 20, posterior=False))
    with pytest.raises(
        Exception, match="384 channels, with residual and ReLU, images of 20 pixels, with the posterior; inst"
    ):
        stand_in.run(op_model(case, ADD_RELU), case.feeds(ADD_RELU))


@pytest.mark.parametrize(
    ("ptx", "sentence"),
    [
        (
            "nonsense",
            "GPU does not take the layer's kernel.*driver 525.*CUDA error 200: device kernel image is invalid",
        ),
        (".entry other(\n)", "PTX has no entry point .*compile the kernels again.*CUDA error 500"),
    ],
)
def test_a_kernel_that_the_driver_refuses_is_one_sentence(stand_in: StandIn, ptx: str, sentence: str) -> None:
    case = random_case(0, 2, 192, 7, (2, 2), 0.0, alike=False)
    register_kernel(stand_in.library, contract(PLAIN, 7, 192, 4).to_json(), ptx)
    with pytest.raises(Exception, match=sentence):
        stand_in.session(op_model(case, PLAIN))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"CBN_CUDA_DRIVER": "/no/libcuda"},
            r"CUDA driver \(/no/libcuda\) cannot be loaded; install the NVIDIA driver",
        ),
        ({"CBN_CUDA_DRIVER": "libm.so.6"}, "CUDA driver has no cuInit; update the NVIDIA driver"),
        ({"STAND_IN_NO_GPU": "1"}, "finds no GPU .*nvidia-smi.*CUDA error 100: no CUDA-capable device is detected"),
    ],
)
def test_no_driver_is_one_sentence(compiled_stand_in: StandIn, settings: dict[str, str], sentence: str) -> None:
    program = """
import sys
from pathlib import Path
from cbn_deploy.native_library import native_library
from tests.export.op_cases import op_model, random_case
from tests.export.test_cuda_op import PLAIN, StandIn
stand_in = StandIn(native_library(), Path(sys.argv[1]), Path(sys.argv[2]))
try:
    stand_in.session(op_model(random_case(0, 1, 3, 2, (4,), 0.0, alike=False), PLAIN))
except Exception as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(compiled_stand_in.driver), str(compiled_stand_in.ops)]
    environment = {**os.environ, "CBN_CUDA_DRIVER": str(compiled_stand_in.driver), "PYTHONPATH": str(ROOT), **settings}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    assert re.search(sentence, done.stdout), done.stdout


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"threads": 0}, "1 to 1024 threads"),
        ({"threads": 2048}, "1 to 1024 threads"),
        ({"shared_bytes": -1}, "shared memory must not be negative"),
        ({"most_channels": 0}, "must be at least 1"),
        ({"entry": ""}, "must not be empty"),
        ({"entry": None}, "not a launch contract"),
        ({"parameters": []}, "parameters are not those of this version"),
        ({"spec": {}}, "not a launch contract"),
        ({"spec.channels_last": True}, "channels last"),
        ({"spec.components": 300}, "1 to 256 components"),
        ({"spec.dtype": "float64"}, "not a launch contract"),
        ({"spec.launch.vector": 0}, "must be at least 1"),
        ({"spec.relu": False}, "without the activation"),
    ],
)
def test_a_wrong_contract_is_one_sentence(change: dict[str, object], sentence: str) -> None:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    values = json.loads(contract(ADD_RELU, 4, 16, 64).to_json())
    for path, value in change.items():
        *folders, name = path.split(".")
        place = values
        for folder in folders:
            place = place[folder]
        place[name] = value
    with pytest.raises(ValueError, match=sentence):
        register_kernel(library, json.dumps(values), "text")


def test_no_kernel_is_for_8_bits() -> None:
    library = native_library()
    if library is None:
        pytest.skip("the native library was not built")
    kernel = CudaKernel(entry=b"kernel", ptx=b"text", type=UINT8, components=4)
    message = library.functions.cbn_cuda_register_kernel(ctypes.byref(kernel))
    assert message == b"The kernel must be for float32 (1), float16 (10) or bfloat16 (16)."


def test_a_folder_of_kernels(compiled_stand_in: StandIn, tmp_path: Path) -> None:
    library = compiled_stand_in.library
    with pytest.raises(SettingsError, match="has no compiled kernels; write them with: python -m"):
        register_folder(library, tmp_path / "absent")
    kernel = contract(PLAIN, 2, 5, 4)
    (tmp_path / "one.json").write_text(kernel.to_json())
    with pytest.raises(SettingsError, match=r"one.json is no kernel for this version .No such file"):
        register_folder(library, tmp_path)
    (tmp_path / "one.ptx").write_text(declaration(kernel))
    register_folder(library, tmp_path)
    (tmp_path / "two.json").write_text("{")
    with pytest.raises(SettingsError, match=r"two.json is no kernel"):
        register_folder(library, tmp_path)


def test_an_onnxruntime_without_cuda_is_one_sentence(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(RuntimeUnavailableError, match="pip install onnxruntime-gpu"):
        open_session(tmp_path / "model.onnx", "onnxruntime-cuda")


@pytest.fixture
def cuda_session(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """onnxruntime-cuda with the CPU's provider and the stand-ins for the library and the driver."""
    library = replace(stand_in.library, path=stand_in.ops)
    monkeypatch.setattr(onnxruntime_cuda_session, "_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(onnxruntime_cuda_session, "_providers", lambda _stream: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime_cuda_session, "native_library", lambda: library)
    return stand_in


def images_for(path: Path, count: int) -> np.ndarray:
    with open_session(path) as session:
        size = session.description.preprocessing
    return np.random.default_rng(0).normal(size=(count, 3, size.height, size.width)).astype(np.float32)


def test_an_exported_network_with_kernels_from_triton(
    cuda_session: StandIn, exported: ExportResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from cbn_deploy.kernels.triton.model_kernels import main, model_layers

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    path = Path(exported.path)
    layers = model_layers(path.read_bytes())
    assert {(layer.channels, layer.pixels) for layer in layers} == {(16, 1024), (32, 256), (64, 64)}
    images = images_for(path, 2)
    launches = cuda_session.record.launches
    with open_session(path, "onnxruntime-cuda") as session:
        assert (session.describe().kernel_path, session.describe().device) == ("fused", "cuda")
        found = session.run(images).logits
    del session
    assert cuda_session.record.launches - launches == 19
    with open_session(path) as session:
        expected = session.run(images).logits
    limit = 2 * TOLERANCES["exported logits"].atol * np.maximum(np.abs(expected).max(1, keepdims=True), 1.0)
    assert (np.abs(found - expected) <= limit).all()
    # The same from a folder, where neither torch nor Triton is asked.
    monkeypatch.setattr(sys, "argv", ["model_kernels", str(path), str(tmp_path / "kernels")])
    main()
    monkeypatch.setenv("CBN_CUDA_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setitem(sys.modules, "cbn_deploy.kernels.triton.model_kernels", None)
    with open_session(path, "onnxruntime-cuda") as session:
        assert session.describe().kernel_path == "fused"
        np.testing.assert_array_equal(session.run(images).logits, found)
    del session


def test_an_exported_network_without_kernels_runs_portably(
    cuda_session: StandIn, exported: ExportResult, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(exported.path)
    monkeypatch.setitem(sys.modules, "cbn_deploy.kernels.triton.model_kernels", None)
    launches = cuda_session.record.launches
    with open_session(path, "onnxruntime-cuda") as session:
        assert session.describe().kernel_path == "portable"
        session.run(images_for(path, 1))
    assert cuda_session.record.launches == launches
    assert "The layer runs portably on the GPU, which is slower" in caplog.text
    assert "CBN_CUDA_KERNELS" in caplog.text
