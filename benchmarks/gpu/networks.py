"""Whole networks: CBN over its batch-norm twin, eager and as CUDA graphs, float32 (no TF32) and bfloat16."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.results import Clock, Section
from benchmarks.gpu.timing import graph_medians, medians
from cbn_deploy.models import ArchitectureConfig, bn_twin, create_model
from cbn_deploy.norm import NormConfig, freeze


@dataclass(frozen=True)
class Network:
    """An architecture at an image size."""

    name: str
    classes: int
    size: int
    batches: tuple[int, ...]


NETWORKS = [Network("resnet50", 1000, 224, (64, 1)), Network("resnet32", 10, 32, (128, 1))]
TINY = [Network("resnet20", 10, 16, (2,))]


def pair(network: Network, device: str) -> dict[str, nn.Module]:
    """The CBN network and its batch-norm twin, random weights, statistics of real activations."""
    torch.manual_seed(0)
    architecture = ArchitectureConfig(name=network.name, num_classes=network.classes, norm=NormConfig(components=4))
    models = {"cbn": create_model(architecture), "bn": create_model(bn_twin(architecture))}
    images = torch.randn(4, 3, network.size, network.size, device=device)
    for model in models.values():
        model.to(device).train()
        with torch.no_grad():
            for _ in range(3):
                model(images)
        model.eval()
    return models


def inference(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Ratio of medians, interleaved; parity of the frozen network with float64 on the CPU first."""
    for network in TINY if tiny else NETWORKS:
        models = pair(network, device)
        frozen = {"cbn": freeze(models["cbn"]), "bn": models["bn"]}
        section.rows.append(_parity_row(network, frozen["cbn"], device))
        for dtype in (torch.float32, torch.bfloat16):
            for batch in network.batches:
                for channels_last in (False, True):
                    if clock.over():
                        return
                    section.rows.append(_row(network, frozen, dtype, batch, device, clock, channels_last=channels_last))


def _parity_row(network: Network, model: nn.Module, device: str) -> dict[str, object]:
    return parity_row(network, model, lambda images: model(images.to(device)))


@torch.no_grad()
def parity_row(network: Network, model: nn.Module, run: Callable[[Tensor], Tensor]) -> dict[str, object]:
    """Logits of ``run``, which is ``model`` elsewhere, against ``model`` in float64 on the CPU."""
    images = torch.randn(2, 3, network.size, network.size, generator=torch.Generator().manual_seed(1))
    on_cpu = copy.deepcopy(model).cpu()
    portable = on_cpu(images).double()
    exact = on_cpu.double()(images.double())

    def error(logits: Tensor) -> float:
        return ((logits - exact).abs().amax(1) / exact.abs().amax(1)).max().item()

    # The exporter's rule: 1e-4, or four times what float32 itself costs this network.
    limit = max(1e-4, 4 * error(portable))
    actual = error(run(images).double().cpu())
    return {"network": network.name, "logits' error": actual, "ok": actual <= limit}


def _row(
    network: Network,
    models: dict[str, nn.Module],
    dtype: torch.dtype,
    batch: int,
    device: str,
    clock: Clock,
    *,
    channels_last: bool,
) -> dict[str, object]:
    form = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.randn(batch, 3, network.size, network.size, device=device, dtype=dtype).to(memory_format=form)
    cast = {name: _with_weights(model, dtype).to(memory_format=form) for name, model in models.items()}

    def call(model: nn.Module) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(images)
        return logits

    works = {name: (lambda model=model: call(model)) for name, model in cast.items()}
    eager = medians(works, clock, rounds=9, least_ms=5.0)
    row: dict[str, object] = {
        "network": network.name,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "layout": "NHWC" if channels_last else "NCHW",
        "eager cbn ms": eager["cbn"],
        "eager bn ms": eager["bn"],
        "eager ratio": eager["cbn"] / eager["bn"],
    }
    if device == "cuda":
        graphs = graph_medians(works, clock)
        if isinstance(graphs, str):
            return row | {"graph": graphs}
        row |= {"graph cbn ms": graphs["cbn"], "graph bn ms": graphs["bn"], "graph ratio": graphs["cbn"] / graphs["bn"]}
    return row


def _with_weights(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose convolutions and classifier are of ``dtype``; statistics and tables stay float32."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return model


def training_step(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Forward, loss and backward of whole networks in float32, eager."""
    for network in TINY if tiny else NETWORKS:
        if clock.over():
            return
        batch = network.batches[0]
        images = torch.randn(batch, 3, network.size, network.size, device=device)
        labels = torch.arange(batch, device=device) % network.classes
        steps = {}
        for name, model in pair(network, device).items():
            steps[name] = _step(model.train(), images, labels)
        times = medians(steps, clock, rounds=5, least_ms=5.0)
        section.rows.append(
            {
                "network": network.name,
                "batch": batch,
                "cbn ms": times["cbn"],
                "bn ms": times["bn"],
                "ratio": times["cbn"] / times["bn"],
            }
        )


def _step(model: nn.Module, images: Tensor, labels: Tensor):  # noqa: ANN202 - a closure
    parameters = list(model.parameters())
    return lambda: torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)
