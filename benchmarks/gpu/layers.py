"""Kernel times by layer, beside a copy of the same tensor: read once, write once is the least that can be done."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.gpu.results import Clock, Section
from benchmarks.gpu.shapes import Shape, random_tables
from benchmarks.gpu.timing import Work, captured, graph_medians, input_sets, medians
from cbn_deploy.kernels.triton import operator, training
from cbn_deploy.kernels.triton.launch import ForwardLaunch, forward_launch
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig, SplitBatchNorm2d, buffers_in_place

COMPONENTS = 4
TARGET = 0.85


def copy_bandwidth(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Device-to-device copies, bytes read plus bytes written a second."""
    for mebibytes in [1] if tiny else [16, 64, 256, 1024]:
        x = torch.randint(0, 255, (mebibytes * 2**20,), dtype=torch.uint8, device=device)
        y = torch.empty_like(x)
        time = medians({"copy": lambda x=x, y=y: y.copy_(x)}, clock)["copy"]
        section.rows.append({"MiB": mebibytes, "ms": time, "GB/s": 2e-6 * x.numel() / time})


def inference(section: Section, clock: Clock, device: str, shapes: Sequence[Shape]) -> None:
    """The fused kernel with ReLU, tables ready, as a fraction of the copy's speed; float32 and bfloat16."""
    for channels_last in (False, True):
        for dtype in (torch.float32, torch.bfloat16):
            for shape in shapes:
                if clock.over():
                    return
                section.rows.append(_inference_row(shape, dtype, device, clock, channels_last=channels_last))


def _inference_row(
    shape: Shape, dtype: torch.dtype, device: str, clock: Clock, *, channels_last: bool
) -> dict[str, object]:
    xs, tables = _inputs(shape, dtype, device, channels_last=channels_last)
    candidates = {
        "copy": captured([lambda x=x: x.clone() for x in xs]),
        "kernel": _captured_kernel(xs, tables),
    }
    times = {name: time / len(xs) for name, time in medians(candidates, clock).items()}
    fraction = times["copy"] / times["kernel"]
    return {
        "network": shape.network,
        "x": shape.label,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "NHWC" if channels_last else "NCHW",
        "kernel us": 1e3 * times["kernel"],
        "copy us": 1e3 * times["copy"],
        "GB/s": 2e-6 * xs[0].numel() * xs[0].element_size() / times["kernel"],
        "of copy": fraction,
        f">= {TARGET}": "yes" if fraction >= TARGET else "no",
    }


def _inputs(shape: Shape, dtype: torch.dtype, device: str, *, channels_last: bool) -> tuple[list[Tensor], Tensor]:
    x = shape.tensor(device, dtype, channels_last=channels_last)
    count = input_sets(2 * x.numel() * x.element_size()) if device == "cuda" else 1
    xs = [x, *(shape.tensor(device, dtype, channels_last=channels_last) for _ in range(count - 1))]
    tables = random_tables(COMPONENTS, shape.channels, device)
    return xs, operator.layer_tables(*tables, 1e-5, shape.channels**-0.5)


def tune(section: Section, clock: Clock, device: str, shapes: Sequence[Shape]) -> None:
    """Other ways to cut the work than :func:`forward_launch`'s, best first: what its rules should become."""
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            if clock.over():
                return
            xs, tables = _inputs(shape, dtype, device, channels_last=False)
            launches = _alternatives(shape, xs[0].element_size())
            candidates = {label: _captured_kernel(xs, tables, launch) for label, launch in launches.items()}
            times = medians(candidates, clock, rounds=7, least_ms=1.0)
            for label in sorted(times, key=lambda name: times[name])[:4]:
                row = {"x": shape.label, "dtype": str(dtype).removeprefix("torch."), "cut": label}
                row |= {"us": 1e3 * times[label] / len(xs), "of chosen": times[label] / times["chosen"]}
                section.rows.append(row)


def _captured_kernel(xs: Sequence[Tensor], tables: Tensor, launch: ForwardLaunch | None = None) -> Work:
    """The kernel on every input in turn."""
    return captured([lambda x=x: operator.forward(x, tables, COMPONENTS, relu=True, launch=launch)[0] for x in xs])


def _alternatives(shape: Shape, item_size: int) -> dict[str, ForwardLaunch]:
    pixels = shape.size**2
    chosen = forward_launch(
        components=COMPONENTS,
        channels=shape.channels,
        pixels=pixels,
        item_size=item_size,
        channels_last=False,
        pixel_count=shape.batch * pixels,
    )
    padded = 1 << (shape.channels - 1).bit_length()
    found = {"chosen": chosen}
    ways = itertools.product((8, 16, 32, 64, 128), (1, 2, 4, 8, 16), ((2, True), (4, True), (8, False), (16, False)))
    for block_pixels, warps, (pieces, resident) in ways:
        block_channels = padded // pieces
        held = block_channels * block_pixels / (32 * warps)
        fits = 16 <= held * pieces <= 64 if resident else 4 <= held <= 16
        if block_channels < 4 or block_pixels < chosen.vector or held > 16 or not fits:
            continue
        label = f"{pieces}x{block_channels} p{block_pixels} w{warps}{'' if resident else ' twice'}"
        found[label] = dataclasses.replace(
            chosen,
            block_channels=block_channels,
            block_pixels=block_pixels,
            chunks=-(-shape.channels // block_channels),
            resident=resident,
            full=shape.channels % block_channels == 0,
            warps=warps,
        )
    return found


def training_passes(section: Section, clock: Clock, device: str, shapes: Sequence[Shape]) -> None:
    """Each pass of a training step in float32, beside a copy of x."""
    for shape in shapes:
        if clock.over():
            return
        x = shape.tensor(device, torch.float32, channels_last=False).flatten(2)
        grad, out = torch.randn_like(x), torch.empty_like(x)
        table = torch.randn(COMPONENTS, shape.channels, device=device) * shape.channels**-0.5
        centre, constant = table[0].contiguous(), torch.zeros(COMPONENTS, device=device)
        w, _ = training.expectation(x, centre, -table.abs(), table, constant)
        tables = [table, table, table, table, constant, table, table]
        candidates = {
            "copy": captured([lambda x=x, out=out: out.copy_(x)]),
            "expectation": captured(
                [lambda x=x, a=(centre, -table.abs(), table, constant): training.expectation(x, *a)]
            ),
            "combine": captured([lambda x=x, a=(centre, w, table, table, out): training.combine(x, *a)]),
            "output sums": captured([lambda a=(grad, x, centre, w): training.output_sums(*a)]),
            "input gradient": captured([lambda a=(grad, x, centre, w, tables): training.input_gradient(*a)]),
        }
        times = medians(candidates, clock)
        row: dict[str, object] = {"network": shape.network, "x": shape.label}
        section.rows.append(row | {f"{name} us": 1e3 * time for name, time in times.items()})


def training_step(section: Section, clock: Clock, device: str, shapes: Sequence[Shape]) -> None:
    """Forward and backward of the layer's two paths over those of cuDNN's batch norm, eager and as CUDA graphs."""
    for shape in shapes:
        for dtype, last in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
            if clock.over():
                return
            x = shape.tensor(device, dtype, channels_last=last).requires_grad_()
            grad = torch.randn_like(x)
            layers = {
                "cbn": CompoundBatchNorm2d(shape.channels, NormConfig(components=COMPONENTS)),
                "split": _split_layer(shape, device),
                "bn": nn.BatchNorm2d(shape.channels),
            }
            steps = {name: _step(layer.to(device).train(), x, grad) for name, layer in layers.items()}
            row: dict[str, object] = {"network": shape.network, "x": shape.label}
            row |= {"dtype": str(dtype).removeprefix("torch."), "layout": "NHWC" if last else "NCHW"}
            eager = medians(steps, clock)
            row |= {"cbn ms": eager["cbn"], "split ms": eager["split"], "bn ms": eager["bn"]}
            row |= {"ratio": eager["cbn"] / eager["bn"], "split ratio": eager["split"] / eager["bn"]}
            if device == "cuda":
                graphs = graph_medians(steps, clock)
                if isinstance(graphs, str):
                    row["graph"] = graphs
                else:
                    row |= {f"graph {name} ms": time for name, time in graphs.items()}
                    row |= {"graph ratio": graphs["cbn"] / graphs["bn"]}
                    row |= {"graph split ratio": graphs["split"] / graphs["bn"]}
            section.rows.append(row)


def _split_layer(shape: Shape, device: str) -> SplitBatchNorm2d:
    """As inside :func:`split_path`, with as many images of every group."""
    layer = SplitBatchNorm2d(shape.channels, torch.arange(COMPONENTS), NormConfig(components=COMPONENTS))
    layer.active_groups = torch.arange(shape.batch, device=device) % COMPONENTS
    return layer


def _step(layer: nn.Module, x: Tensor, grad: Tensor):  # noqa: ANN202 - a closure
    parameters = [x, *layer.parameters()]

    def step() -> tuple[Tensor, ...]:
        # Else a recording would read statistics that nobody keeps.
        with buffers_in_place(layer):
            return torch.autograd.grad(layer(x), parameters, grad)

    return step
