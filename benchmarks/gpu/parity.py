"""Every kernel against float64 on the CPU."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.results import Clock, Section
from benchmarks.gpu.shapes import random_tables
from cbn_deploy.kernels import split_groups
from cbn_deploy.kernels.triton import operator, split, training
from cbn_deploy.norm import CompoundBatchNorm2d, NormConfig
from tests.reference.op_float64 import OpResult, compound_batch_normalization
from tests.reference.tolerances import TOLERANCES

UNIT = TOLERANCES["op float32"].rtol
ROUNDING = {torch.float16: "op float16", torch.bfloat16: "op bfloat16"}
FORMS = {"plain": (False, False), "relu": (False, True), "add+relu": (True, True)}
EPSILON = 1e-5


def inference_cases(*, tiny: bool) -> list[dict[str, Any]]:
    """Forms, types and layouts at one width; then widths and numbers of components; then extreme statistics."""
    base: dict[str, Any] = {"form": "plain", "dtype": torch.float32, "last": False, "D": 64, "M": 4, "spatial": (7, 9)}
    if tiny:
        return [{**base, "D": 6, "spatial": (2, 3), "form": form} for form in FORMS] + [{**base, "D": 520, "M": 2}]
    types = (torch.float32, torch.float16, torch.bfloat16)
    cases = [
        {**base, "form": form, "dtype": dtype, "last": last, "spatial": (8, 8)}
        for form, dtype, last in itertools.product(FORMS, types, (False, True))
    ]
    cases += [{**base, "D": width} for width in (1, 3, 24, 130, 256, 512, 1000, 1024, 2048)]
    cases += [{**base, "D": width, "dtype": torch.bfloat16, "last": True} for width in (24, 512, 2048)]
    cases += [{**base, "M": components} for components in (1, 2, 3, 8, 16)]
    return [*cases, {**base, "extreme": True}, {**base, "alike": True}, {**base, "spatial": ()}]


def inference(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Y and posterior within the op's error model (docs/op.md)."""
    for seed, case in enumerate(inference_cases(tiny=tiny)):
        if clock.over():
            return
        section.rows.append(_inference_row(seed, case, device))
    section.rows.append(_special_values_row(device))


def _inference_row(seed: int, case: dict[str, Any], device: str) -> dict[str, Any]:
    x, residual, tables, scale = _random_layer(seed, case)
    has_residual, relu = FORMS[case["form"]]
    memory = x.movedim(1, -1).contiguous().movedim(-1, 1) if case["last"] else x
    y, posterior = operator.compound_batch_norm(
        memory.to(device),
        *(table.to(device) for table in tables),
        EPSILON,
        scale,
        residual=residual.to(device) if has_residual else None,
        relu=relu,
        with_posterior=True,
    )
    assert posterior is not None  # noqa: S101 - asked for
    with np.errstate(all="ignore"):
        expected = compound_batch_normalization(
            x.double().numpy(),
            *(table.double().numpy() for table in tables),
            float(np.float32(EPSILON)),
            float(np.float32(scale)),
            unit=UNIT,
            residual=residual.double().numpy() if has_residual else None,
            relu=relu,
        )
    error = _worst(y, posterior, expected)
    shown = {key: str(value).removeprefix("torch.") for key, value in case.items()}
    return {"case": " ".join(f"{key}={value}" for key, value in shown.items()), "of_allowed": error, "ok": error <= 1.0}


def _random_layer(seed: int, case: dict[str, Any]) -> tuple[Tensor, Tensor, tuple[Tensor, ...], float]:
    random = np.random.default_rng(seed)
    shape = (case["M"], case["D"])
    tau = random.dirichlet(np.ones(case["M"]))
    mean, var = random.normal(size=shape), random.uniform(0.3, 3.0, shape)
    if case.get("extreme"):
        mean, var, tau[0] = mean * 10 ** random.uniform(0, 3, shape), 10 ** random.uniform(-6, 5, shape), 0.0
    if case.get("alike"):
        mean, var = mean[:1] * (1 + 1e-6 * random.normal(size=shape)), var[:1] * (1 + 1e-6 * random.normal(size=shape))
    images = (3, *case["spatial"])
    owner = random.choice(case["M"], size=images, p=tau / tau.sum())
    x = np.moveaxis(mean[owner] + random.normal(size=(*images, case["D"])) * np.sqrt(var[owner]), -1, 1)
    data = [torch.from_numpy(np.ascontiguousarray(v)).to(case["dtype"]) for v in (x, random.normal(size=x.shape))]
    tables = (tau, mean, var, random.normal(size=shape), random.normal(size=shape))
    return data[0], data[1], tuple(torch.from_numpy(t).float() for t in tables), case["D"] ** -0.5


def _worst(y: Tensor, posterior: Tensor, expected: OpResult) -> float:
    """Largest error as a fraction of what is allowed."""
    allowed = UNIT * expected.y_condition + 1e-30
    if y.dtype in ROUNDING:
        row = TOLERANCES[ROUNDING[y.dtype]]
        allowed = allowed + row.rtol * np.abs(expected.y) + row.atol
    worst = np.max(np.abs(y.double().cpu().numpy() - expected.y) / allowed)
    of_posterior = np.abs(posterior.double().cpu().numpy() - expected.posterior)
    result = max(worst, np.max(of_posterior / (UNIT * expected.posterior_condition + 1e-30)))
    return float(result) if np.isfinite(result) else float("inf")


def _special_values_row(device: str) -> dict[str, Any]:
    x, _, tables, scale = _random_layer(1, {"D": 6, "M": 3, "spatial": (4,), "dtype": torch.float32})
    x[0, 2, 1], x[1, 0, 3] = torch.nan, torch.inf
    y, posterior = operator.compound_batch_norm(
        x.to(device), *(table.to(device) for table in tables), EPSILON, scale, relu=True, with_posterior=True
    )
    assert posterior is not None  # noqa: S101 - asked for
    spoilt = torch.zeros(3, 4, dtype=torch.bool)
    spoilt[0, 1] = spoilt[1, 3] = True
    ok = all(torch.equal(v.isnan().cpu(), spoilt[:, None].expand(v.shape)) for v in (y, posterior))
    return {"case": "NaN and infinity spoil their own pixel only, through ReLU", "ok": ok}


def training_passes(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """Sums and gradients within 'training pass' of the table of tolerances, relative to the largest number."""
    widths = [(6, 6, 3)] if tiny else [(16, 1024, 4), (24, 49, 4), (64, 196, 8), (512, 49, 4), (2048, 49, 4)]
    types = [torch.float32] if tiny else [torch.float32, torch.bfloat16]
    for (channels, pixels, components), dtype, last in itertools.product(widths, types, (False, True)):
        if clock.over():
            return
        found = _training_errors(channels, pixels, components, dtype, device, channels_last=last)
        for name, error in found.items():
            result_type = dtype if name in ("y", "gradient of x") else torch.float32
            limit = {torch.float32: TOLERANCES["training pass"].rtol, torch.bfloat16: 2.0**-8}[result_type]
            layout = "channels last" if last else "channels first"
            case = f"D={channels} P={pixels} M={components} {str(dtype).removeprefix('torch.')} {layout} {name}"
            section.rows.append({"case": case, "of_allowed": error / limit, "ok": error <= limit})


def split_passes(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """The split path's moments, sums and gradients, likewise; x stands 8 deviations off zero."""
    sizes = [(6, 6, 3)] if tiny else [(16, 1024, 4), (64, 64, 4), (24, 49, 4), (64, 3136, 8), (2048, 49, 4)]
    types = [torch.float32] if tiny else [torch.float32, torch.bfloat16]
    for (channels, pixels, groups), dtype, last in itertools.product(sizes, types, (False, True)):
        if clock.over():
            return
        for name, error in _split_errors(channels, pixels, groups, dtype, device, channels_last=last).items():
            result_type = dtype if name in ("y", "gradient of x") else torch.float32
            limit = {torch.float32: TOLERANCES["training pass"].rtol, torch.bfloat16: 2.0**-8}[result_type]
            layout = "channels last" if last else "channels first"
            case = f"split D={channels} P={pixels} M={groups} {str(dtype).removeprefix('torch.')} {layout} {name}"
            section.rows.append({"case": case, "of_allowed": error / limit, "ok": error <= limit})


def operators(section: Section, clock: Clock, device: str, *, tiny: bool) -> None:
    """What torch sees: the layer's training step in float64's neighbourhood, and operators that keep their promises.

    Rounding of x, y and the gradients to bfloat16 is 2^-8 of the largest number.
    """
    channels = 6 if tiny else 64
    for dtype, last in itertools.product((torch.float32, torch.bfloat16), (False, True)):
        if clock.over():
            return
        limit = {torch.float32: 1e-4, torch.bfloat16: 2.0**-7}[dtype]
        for name, error in _layer_errors(channels, dtype, device, channels_last=last).items():
            case = f"layer {str(dtype).removeprefix('torch.')} {'channels last' if last else 'channels first'} {name}"
            section.rows.append({"case": case, "of_allowed": error / limit, "ok": error <= limit})
        section.rows.append(_promises_row(channels, dtype, device, channels_last=last))


def _layer_errors(channels: int, dtype: torch.dtype, device: str, *, channels_last: bool) -> dict[str, float]:
    torch.manual_seed(channels)
    layer = CompoundBatchNorm2d(channels, NormConfig(components=4)).train()
    x, grad = (torch.randn(4, channels, 6, 4).to(dtype) for _ in range(2))

    def step(layer: CompoundBatchNorm2d, x: Tensor) -> dict[str, Tensor]:
        x = x.requires_grad_()
        y = layer(x)
        gradients = torch.autograd.grad(y, [x, layer.weight, layer.bias], grad.to(y))
        names = ("y", "gradient of x", "gradient of scale", "gradient of bias", "mean", "var")
        values = (y.detach(), *gradients, layer.running_mean, layer.running_var)
        return dict(zip(names, values, strict=True))

    exact = step(copy.deepcopy(layer).double(), x.double())
    form = torch.channels_last if channels_last else torch.contiguous_format
    actual = step(layer.to(device), x.to(device).contiguous(memory_format=form))
    if not actual["y"].is_contiguous(memory_format=form):
        return {"memory format of y": float("inf")}
    return {
        name: ((actual[name].double().cpu() - value).abs().max() / value.abs().max()).item()
        for name, value in exact.items()
    }


def _promises_row(channels: int, dtype: torch.dtype, device: str, *, channels_last: bool) -> dict[str, Any]:
    """torch.library's own check: schema, autograd registration, and that compilers are told the outputs' strides."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, channels, 5, 4, device=device, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    tables = random_tables(4, channels, device)
    w, *rest, mass, mean, var = torch.ops.cbn.mixture_statistics(x.detach(), *tables[:3], EPSILON, 0.5)
    normalize = (x, w, *rest, mean, var, 1.0 / mass, *tables[3:], EPSILON)
    result: dict[str, Any] = {"case": f"opcheck {dtype} {'channels last' if channels_last else 'channels first'}"}
    try:
        torch.library.opcheck(torch.ops.cbn.compound_batch_norm, (x, *tables, EPSILON, 0.5))
        torch.library.opcheck(torch.ops.cbn.compound_batch_norm_posterior, (x.detach(), *tables, EPSILON, 0.5))
        torch.library.opcheck(torch.ops.cbn.mixture_statistics, (x.detach(), *tables[:3], EPSILON, 0.5))
        torch.library.opcheck(torch.ops.cbn.mixture_normalize, normalize)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        return {**result, "ok": False, "says": str(error).strip().splitlines()[0][:200]}
    return {**result, "ok": True}


def _training_errors(
    channels: int, pixels: int, components: int, dtype: torch.dtype, device: str, *, channels_last: bool
) -> dict[str, float]:
    random = torch.Generator().manual_seed(channels)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    x, g = (normal(3, channels, pixels).to(dtype) for _ in range(2))
    names = ("gain", "offset", "curvature", "slope", "constant", "quadratic", "linear")
    tables = {name: normal(components, channels) for name in names} | {"constant": normal(components)}
    tables["quadratic"] = tables["quadratic"] * 0.3 * channels**-0.5
    tables["linear"] = tables["linear"] * channels**-0.5
    centre = normal(channels)
    exact = {name: table.double() for name, table in tables.items()}
    x64, g64 = x.double().requires_grad_(), g.double()
    c = x64 - centre.double()[:, None]

    def product(name: str, values: Tensor) -> Tensor:
        return torch.einsum("md,bdp->bmp", exact[name], values)

    logits = 0.5 * product("quadratic", c.square()) + product("linear", c) + exact["constant"][:, None]
    w = torch.softmax(logits, 1)
    y = c * torch.einsum("bmp,md->bdp", w, exact["gain"]) + torch.einsum("bmp,md->bdp", w, exact["offset"])
    worth = product("curvature", c.square()) + product("slope", c) + exact["constant"][:, None]
    ((g64 * y).sum() + (w * worth).sum()).backward()
    assert x64.grad is not None  # noqa: S101 - just made
    c, w, y = c.detach(), w.detach(), y.detach()

    moved = {name: table.to(device) for name, table in tables.items()}
    x, g, centre = x.to(device), g.to(device), centre.to(device)
    if channels_last:
        x, g = (value.movedim(1, -1).contiguous().movedim(-1, 1) for value in (x, g))
    actual_w, sums = training.expectation(x, centre, 0.5 * moved["quadratic"], moved["linear"], moved["constant"])
    out = torch.empty_like(x)
    training.combine(x, centre, actual_w, moved["gain"], moved["offset"], out)
    through_gain, through_offset = training.output_sums(g, x, centre, actual_w)
    gradient = training.input_gradient(g, x, centre, actual_w, [moved[name] for name in names])
    pairs = {
        "w": (actual_w, w),
        "mass": (sums[0], w.sum((0, 2))),
        "first moments": (sums[1], torch.einsum("bmp,bdp->md", w, c)),
        "second moments": (sums[2], torch.einsum("bmp,bdp->md", w, c.square())),
        "y": (out, y),
        "sums of w c g": (through_gain, torch.einsum("bmp,bdp->md", w, c * g64)),
        "sums of w g": (through_offset, torch.einsum("bmp,bdp->md", w, g64)),
        "gradient of x": (gradient, x64.grad),
    }
    return _errors(pairs)


def _errors(pairs: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Largest difference over the largest number."""
    return {
        name: ((actual.double().cpu() - expected).abs().max() / expected.abs().max()).item()
        for name, (actual, expected) in pairs.items()
    }


def _split_errors(
    channels: int, pixels: int, components: int, dtype: torch.dtype, device: str, *, channels_last: bool
) -> dict[str, float]:
    """Every pass on what the passes before it should have made, but for the images' moments, which are its own."""
    random = torch.Generator().manual_seed(channels)
    x, g = (torch.randn(9, channels, pixels, generator=random).add(8.0 * i).to(dtype) for i in (1, 0))
    scale, bias = (torch.randn(components, channels, generator=random) for _ in range(2))
    groups = torch.arange(9) % (components - 1)  # the last group is empty
    x64, g64 = x.double(), g.double()
    mean_BD, var_BD = x64.mean(2), x64.var(2, correction=0)
    mass, mean, var = split_groups.group_moments(mean_BD, var_BD, groups, pixels, components)
    inverse_mass = torch.where(mass > 0, 1.0 / mass, 0.0)
    centred = x64 - mean[groups][..., None]
    products, sums = (centred * g64).sum(2), g64.sum(2)
    exact = split_groups.group_gradients(products, sums, groups, var, inverse_mass, scale.double(), EPSILON)
    gain, curvature, slope, offset = (
        table.double()[groups][..., None] for table in (exact.gain, exact.curvature, exact.slope, bias)
    )

    groups = groups.to(device)
    tables = [table.float().to(device) for table in (mean, var, scale, bias)]
    if channels_last:
        x, g = (value.movedim(1, -1).contiguous().movedim(-1, 1) for value in (x, g))
    x, g = x.to(device), g.to(device)
    of_images = split.moments(x)
    of_groups = split.group_moments(*of_images, groups, pixels, components)
    y, gradient = torch.empty_like(x), torch.empty_like(x)
    split.normalize(x, groups, *tables, EPSILON, y)
    of_gradients = split.gradient_sums(g, x, groups, tables[0])
    found = split.group_gradients(*of_gradients, groups, tables[1], inverse_mass.float().to(device), tables[2], EPSILON)
    split.input_gradient(g, x, groups, tables[0], found, gradient)
    pairs = dict(zip(("mean of images", "var of images"), zip(of_images, (mean_BD, var_BD), strict=True), strict=True))
    pairs |= dict(zip(("mass", "mean", "var"), zip(of_groups, (mass, mean, var), strict=True), strict=True))
    pairs |= {
        "y": (y, gain * centred + offset),
        "sums of (x - mean) g": (of_gradients[0], products),
        "sums of g": (of_gradients[1], sums),
        "gradient of scale": (found.scale, exact.scale),
        "gradient of bias": (found.bias, exact.bias),
        "gradient of x": (gradient, gain * g64 + 2.0 * curvature * centred + slope),
    }
    return _errors(pairs)
