"""A whole benchmark of a real checkpoint, and what happens when a runtime is wrong or missing."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

from cbn_deploy.benchmark import Ratio
from cbn_deploy.checkpoint import file_sha256
from cbn_deploy.errors import CheckpointError, ParityError, RuntimeUnavailableError
from cbn_deploy.native_library import native_library
from export.bench.candidates import RUNTIMES, Built, Runtime
from export.bench.gpu import tf32_off
from export.bench.plot import draw, save_plot
from export.bench.report import BenchReport, three_digits, to_json
from export.bench.run import BenchOptions, bench_checkpoint
from export.bench.table import ratio_text, render
from export.to_onnx import to_onnx

QUICK = BenchOptions(
    runtimes=("eager-paper", "eager", "onnxruntime", "ort-portable", "openvino", "tensorrt"),
    batch_sizes=(1, 3),
    threads=1,
    rounds=3,
)


def text_of(report: BenchReport, width: int = 80) -> str:
    console = Console(width=width, record=True, file=None)
    with console.capture() as capture:
        for part in render(report):
            console.print(part)
    return capture.get()


@pytest.fixture(scope="module")
def stages() -> list[str]:
    return []


@pytest.fixture(scope="module")
def onnx_domains() -> list[set[str]]:
    return []


@pytest.fixture(scope="module")
def report(checkpoint_path, stages, onnx_domains) -> BenchReport:
    def spy(*arguments, **options) -> onnx.ModelProto:
        proto = to_onnx(*arguments, **options)
        onnx_domains.append({node.domain for node in proto.graph.node} | {f.domain for f in proto.functions})
        return proto

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.bench.candidates.to_onnx", spy)
        report = bench_checkpoint(checkpoint_path, QUICK, progress=lambda stage, _fraction: stages.append(stage))
    assert torch.get_num_threads() == threads
    return report


def sabotage(monkeypatch, name: str, build) -> None:
    monkeypatch.setitem(RUNTIMES, name, Runtime(title=name, build=build, missing=lambda: None, networks=("cbn",)))


def shifted(network, _workspace):
    return Built(lambda images: network.module(torch.from_numpy(images)).numpy() + 0.5, "1", "eager")


def test_every_candidate_agrees_and_is_measured_but_tensorrt(report):
    status = {candidate.name: candidate.status for candidate in report.candidates}
    expected = {
        f"{network}/{name}": "measured" for name in ("eager", "onnxruntime", "openvino") for network in ("cbn", "bn")
    }
    expected["cbn/eager-paper"] = expected["cbn/ort-portable"] = "measured"
    expected["cbn/tensorrt"] = expected["bn/tensorrt"] = "skipped"
    assert status == expected
    for candidate in report.candidates:
        if candidate.status == "measured":
            assert candidate.reason is None
            assert candidate.parity is not None
            assert candidate.parity.of_limit <= 1
            assert candidate.parity.images == 64
        else:
            assert candidate.reason is not None
            assert candidate.reason.endswith(".")


def test_every_measured_candidate_has_a_row_for_each_batch_size(report):
    rows = [(timing.batch_size, timing.candidate) for timing in report.timings]
    measured = [candidate.name for candidate in report.candidates if candidate.status == "measured"]
    assert rows == [(batch_size, name) for batch_size in (1, 3) for name in measured]
    for timing in report.timings:
        assert len(timing.calls_ns) == 3
        assert timing.latency.median > 0
        assert (timing.times_twin is None) == (
            timing.candidate.startswith("bn/") or timing.candidate == "cbn/eager-paper"
        )
        assert (timing.speedup_over_paper is None) == (
            timing.candidate.startswith("bn/") or timing.candidate == "cbn/eager-paper"
        )


def test_the_kernel_path_is_told(report):
    fused = "portable" if native_library() is None else "fused"
    assert report.candidate("cbn/onnxruntime").kernel_path == fused
    assert report.candidate("cbn/ort-portable").kernel_path == "portable"
    assert report.candidate("bn/onnxruntime").kernel_path == "portable"


def test_ratios_belong_to_the_right_pairs(report):
    for batch_size in (1, 3):
        medians = {
            timing.candidate: np.median(timing.calls_ns, axis=1)
            for timing in report.timings
            if timing.batch_size == batch_size
        }
        for timing in report.timings:
            if timing.batch_size == batch_size and timing.times_twin is not None:
                own = medians[timing.candidate]
                twin_name = timing.candidate.replace("cbn/", "bn/").replace("ort-portable", "onnxruntime")
                twin = np.median(own / medians[twin_name])
                paper = np.median(medians["cbn/eager-paper"] / own)
                assert timing.times_twin.median == pytest.approx(twin)
                assert timing.speedup_over_paper is not None
                assert timing.speedup_over_paper.median == pytest.approx(paper)


def test_progress_names_the_stages_in_order(report, stages):
    assert list(dict.fromkeys(stages)) == ["preparing", "parity", "timing"]


def test_the_json_says_what_was_measured_on_what(report, checkpoint_path):
    plain = json.loads(to_json(report))
    assert (plain["format"], plain["version"]) == ("cbn-bench", 1)
    assert plain["model"]["sha256"] == file_sha256(checkpoint_path)
    assert plain["model"]["architecture"] == "resnet20"
    assert plain["machine"]["packages"]["torch"] == torch.__version__
    assert plain["machine"]["cpu"]
    assert plain["parameters"]["threads"] == 1
    assert plain["parameters"]["batch_sizes"] == [1, 3]
    assert len(plain["timings"]) == len(report.timings)
    first = plain["timings"][0]
    assert first["latency"]["median"] == pytest.approx(np.median(np.concatenate(first["calls_ns"])) / 1e6)


def test_the_table_fits_eighty_columns_with_every_number_whole(report):
    text = text_of(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    for timing in report.timings:
        assert timing.candidate in text
    assert "skipped" in text


def test_the_plot_has_a_panel_a_batch_size_and_a_bar_a_candidate(report, tmp_path):
    figure = draw(report)
    assert [panel.get_title() for panel in figure.axes] == [
        "batch size 1: milliseconds a batch",
        "batch size 3: milliseconds a batch",
    ]
    for panel, batch_size in zip(figure.axes, (1, 3), strict=True):
        widths = sorted(bar.get_width() for bar in panel.patches)
        medians = sorted(t.latency.median for t in report.timings if t.batch_size == batch_size)
        np.testing.assert_allclose(widths, medians)
    save_plot(report, tmp_path / "plot.png", "png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0.0852, "0.0852"),
        (0.85, "0.850"),
        (12.84, "12.8"),
        (601.6, "602"),
        (999.4, "999"),
        (999.6, "1000"),
        (2042.4, "2042"),
    ],
)
def test_times_have_three_digits_and_no_exponent(milliseconds, text):
    assert three_digits(milliseconds) == text


@pytest.mark.parametrize(
    ("median", "p10", "p90", "text"),
    [(1.0, 0.96, 1.04, "1.00 (1.0-1.0)"), (9.99, 9.94, 9.95, "9.99 (9.9-10)"), (27.15, 20.24, 135.4, "27.1 (20-135)")],
)
def test_ratios_stay_narrow(median, p10, p90, text):
    assert ratio_text(Ratio(median=median, p10=p10, p90=p90)) == text


def test_a_runtime_that_disagrees_is_reported_and_not_timed(checkpoint_path, monkeypatch):
    sabotage(monkeypatch, "wrong", shifted)
    options = BenchOptions(runtimes=("eager", "wrong"), batch_sizes=(2,), threads=1, rounds=2)
    report = bench_checkpoint(checkpoint_path, options)
    wrong = report.candidate("cbn/wrong")
    assert wrong.status == "failed"
    assert wrong.reason is not None
    assert "logits off by up to 0.5" in wrong.reason
    assert {timing.candidate for timing in report.timings} == {"cbn/eager", "bn/eager"}
    assert "failed" in text_of(report)
    json.loads(to_json(report))


def test_a_runtime_that_crashes_is_reported_and_its_json_has_null_for_nan(checkpoint_path, monkeypatch):
    def crash(_network, _workspace):
        def run(_images):
            raise MemoryError("too large")

        return Built(run, "1", "eager")

    sabotage(monkeypatch, "crash", crash)
    options = BenchOptions(runtimes=("eager", "crash"), batch_sizes=(2,), threads=1, rounds=2)
    report = bench_checkpoint(checkpoint_path, options)
    assert report.candidate("cbn/crash").reason == "stopped at batch size 2 (MemoryError: too large)"
    crashed = next(c for c in json.loads(to_json(report))["candidates"] if c["name"] == "cbn/crash")
    assert crashed["parity"]["max_difference"] is None


def test_nothing_that_agrees_is_an_error(checkpoint_path, monkeypatch):
    sabotage(monkeypatch, "wrong", shifted)
    with pytest.raises(ParityError, match=r"nothing was timed \(cbn/wrong: logits off"):
        bench_checkpoint(checkpoint_path, BenchOptions(runtimes=("wrong",), batch_sizes=(2,), threads=1, rounds=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU changes the reason")
def test_nothing_that_can_run_is_an_error_with_the_reason(checkpoint_path):
    with pytest.raises(RuntimeUnavailableError, match=r"TensorRT is not installed|NVIDIA GPU"):
        bench_checkpoint(checkpoint_path, BenchOptions(runtimes=("tensorrt",)))


def test_a_device_with_a_clock_of_its_own_is_reported_apart(checkpoint_path, monkeypatch):
    def slow(network, _workspace):
        times = {1: [3.0, 1.0, 2.0], 4: [8.0, 8.0, 8.0]}
        clock = lambda images, calls: times[len(images)][:calls]  # noqa: E731
        run = lambda images: network.module(torch.from_numpy(images)).numpy()  # noqa: E731
        return Built(run, "1", "eager", clock)

    sabotage(monkeypatch, "device", slow)
    options = BenchOptions(runtimes=("eager", "device"), batch_sizes=(1, 4), threads=1, rounds=3)
    report = bench_checkpoint(checkpoint_path, options)
    found = {(t.candidate, t.batch_size): t.device for t in report.timings}
    assert {name for (name, _), device in found.items() if device is not None} == {"cbn/device"}
    assert found["cbn/device", 1].median == 2.0
    assert found["cbn/device", 4].images_per_second == pytest.approx(500)
    assert "On the device alone" in text_of(report)
    assert next(row for row in json.loads(to_json(report))["timings"] if row["candidate"] == "cbn/device")["device"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_every_way_to_run_on_a_gpu_agrees(checkpoint_path):
    runtimes = ("cuda", "cuda-compile", "cuda-graphs")
    report = bench_checkpoint(checkpoint_path, BenchOptions(runtimes=runtimes, batch_sizes=(1, 5), rounds=3))
    assert {candidate.status for candidate in report.candidates} == {"measured"}
    assert all(timing.device is not None for timing in report.timings)
    assert all(timing.device_times_twin for timing in report.timings if timing.candidate.startswith("cbn/"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_rows_are_skipped_with_the_reason(checkpoint_path):
    gpu = tuple(name for name in RUNTIMES if name.startswith(("cuda", "ort-cuda", "tensorrt", "trt")))
    assert len(gpu) == 7
    report = bench_checkpoint(checkpoint_path, BenchOptions(runtimes=("eager", *gpu), batch_sizes=(1,), rounds=1))
    skipped = [candidate for candidate in report.candidates if candidate.status == "skipped"]
    assert len(skipped) == 12
    assert all(candidate.reason for candidate in skipped)
    lines = text_of(report, width=400).splitlines()
    assert sum(line.startswith("skipped ") for line in lines) == len({candidate.reason for candidate in skipped}) == 3


def test_tf32_is_off_while_a_gpu_is_measured_and_as_before_afterwards():
    before = torch.backends.cudnn.conv.fp32_precision
    restore = tf32_off()
    assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == "ieee"
    restore()
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_a_package_that_is_missing_skips_its_runtime(checkpoint_path, monkeypatch):
    import export.bench.candidates as module

    monkeypatch.setattr(
        module.importlib.util,
        "find_spec",
        lambda name, found=module.importlib.util.find_spec: None if name == "openvino" else found(name),
    )
    options = BenchOptions(runtimes=("eager", "openvino"), batch_sizes=(1,), threads=1, rounds=1)
    report = bench_checkpoint(checkpoint_path, options)
    assert report.candidate("bn/openvino").reason == (
        "openvino is not installed; install it with: pip install 'cbn-deploy[openvino]'."
    )


def test_a_batch_norm_checkpoint_is_refused(tmp_path):
    from tests.checkpoints import make_checkpoint

    path = tmp_path / "bn.pt"
    with torch.random.fork_rng():
        make_checkpoint(path, name="resnet20-bn", steps=1)
    with pytest.raises(CheckpointError, match="plain batch-norm model"):
        bench_checkpoint(path)


def test_the_measured_onnx_files_are_what_they_claim(report, onnx_domains):
    """Exported once for all runtimes: with our op; the twin, plain batch norm; flat for the portable path."""
    assert onnx_domains == [{"", "cbn"}, {""}, {""}]
