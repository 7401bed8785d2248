"""The mixture layer as TensorRT's Quick Deployable Plugin, compiled ahead of time: an engine with it needs no Python.

What NVIDIA's layer demands of the functions (``tensorrt.plugin``, read at versions 10.15 to 11.4):

- Parameters are matched by name and order: inputs, attributes, ``outputs`` and, for ``aot_impl``, ``tactic``. The
  types of ``register`` are mandatory and must be types, not strings, so they are set by :func:`_annotate`: the module
  that has them is not there when this file is imported.
- ``aot_impl`` is called with ALL attributes, in the order in which the parser found them, which is that of
  ``register``; so there is one attribute. Attributes are not stored in the engine: M is compiled into the kernel.
- The kernel is called with its inputs, then the extra integers, then its outputs, and nothing else: the order of
  :attr:`cbn_deploy.kernels.triton.contract.KernelSpec.parameters`.
- Extra arguments must be ``SymInt32``; sums and products of them lose that type and are wrapped again.
- In ``register`` shapes are symbols, at first not even real ones; sizes are read from ``shape``, which ``autotune`` and
  ``aot_impl`` have. Symbols are for what depends on the batch: the grid and the number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import GenericAlias, ModuleType
from typing import Any

from cbn_deploy.kernels.triton.contract import DataType, LaunchContract
from export.op import DOMAIN, FORMS, OpForm
from export.tensorrt.compiler import CompileLayer
from export.tensorrt.pack_tables import COMPONENTS, plugin_name

__all__ = ["register_plugins"]

# TensorRT's data types by attribute, what a kernel calls them, and how the autotuner spells them.
_DTYPES: dict[DataType, str] = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}
# Channels-last layouts: float32 has one of its own; of the padded one only whole groups of 8 channels are dense.
_HWC8_CHANNELS = 8


def register_plugins(trt: ModuleType, trtp: ModuleType, compile_layer: CompileLayer) -> None:
    """Register all forms, with and without posterior, unless this process has done so already.

    Args:
        trt: ``tensorrt``.
        trtp: ``tensorrt.plugin``.
        compile_layer: called by the builder for every node and every layout that it considers.
    """
    for form in FORMS.values():
        for with_posterior in (False, True):
            name = plugin_name(form, with_posterior=with_posterior)
            if not hasattr(trtp.op.define_or_get(DOMAIN), name):
                _register(_Plugin(trt, trtp, form, with_posterior, compile_layer), f"{DOMAIN}::{name}")


def _register(plugin: _Plugin, plugin_id: str) -> None:
    trtp = plugin.trtp
    register, autotune, aot_impl = _with_residual(plugin) if plugin.form.residual else _without_residual(plugin)
    outputs = (trtp.TensorDesc,) * (2 if plugin.with_posterior else 1)
    launch = (str, str, trtp.KernelLaunchParams, trtp.SymIntExprs)
    trtp.register(plugin_id)(_annotate(register, trtp, GenericAlias(tuple, outputs)))
    trtp.autotune(plugin_id)(_annotate(autotune, trtp, GenericAlias(list, trtp.AutoTuneCombination)))
    trtp.aot_impl(plugin_id)(_annotate(aot_impl, trtp, GenericAlias(tuple, launch)))


_Functions = tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]


def _without_residual(plugin: _Plugin) -> _Functions:
    def register(x: Any, tables: Any, components: Any) -> Any:
        del tables
        return plugin.outputs(x, components)

    def autotune(x: Any, tables: Any, outputs: Any) -> Any:
        del tables, outputs
        return plugin.layouts(x)

    def aot_impl(x: Any, tables: Any, components: Any, outputs: Any, tactic: Any) -> Any:
        del tables, outputs, tactic
        return plugin.launch(x, components)

    return register, autotune, aot_impl


def _with_residual(plugin: _Plugin) -> _Functions:
    def register(x: Any, residual: Any, tables: Any, components: Any) -> Any:
        del residual, tables
        return plugin.outputs(x, components)

    def autotune(x: Any, residual: Any, tables: Any, outputs: Any) -> Any:
        del residual, tables, outputs
        return plugin.layouts(x)

    def aot_impl(x: Any, residual: Any, tables: Any, components: Any, outputs: Any, tactic: Any) -> Any:
        del residual, tables, outputs, tactic
        return plugin.launch(x, components)

    return register, autotune, aot_impl


def _annotate(function: Callable[..., Any], trtp: ModuleType, result: Any) -> Callable[..., Any]:
    types = {COMPONENTS: int, "outputs": GenericAlias(tuple, trtp.TensorDesc), "tactic": int}
    names = function.__code__.co_varnames[: function.__code__.co_argcount]
    function.__annotations__ = {name: types.get(name, trtp.TensorDesc) for name in names} | {"return": result}
    return function


class _Plugin:
    """What the functions of one form do."""

    def __init__(
        self, trt: ModuleType, trtp: ModuleType, form: OpForm, with_posterior: bool, compile_layer: CompileLayer
    ) -> None:
        self.trt, self.trtp = trt, trtp
        self.form, self.with_posterior = form, with_posterior
        self._compile = compile_layer

    def outputs(self, x: Any, components: int) -> Any:
        """Y like x; the posterior (B, M, *spatial) float32."""
        if not self.with_posterior:
            return (x.like(),)
        shape = (x.shape_expr[0], components, *list(x.shape_expr)[2:])
        return x.like(), self.trtp.from_shape_expr(shape, self.trt.float32)

    def layouts(self, x: Any) -> list[Any]:
        """The layouts that a kernel exists for: contiguous, and channels last where that is dense too.

        The type is the network's: it is strongly typed, and TensorRT has no other to offer.
        """
        layout = "LINEAR"
        if x.ndim == 4 and x.dtype == self.trt.float32:
            layout += "|HWC"
        elif x.ndim == 4 and x.shape[1] % _HWC8_CHANNELS == 0:
            layout += "|HWC8"
        data = (_DTYPES[self._dtype(x)], layout)
        tables, posterior = ("FP32", "LINEAR"), ("FP32", "LINEAR")
        values = [data, *([data] if self.form.residual else []), tables, data]
        values += [posterior] if self.with_posterior else []
        types, layouts = (", ".join(part) for part in zip(*values, strict=True))
        return [self.trtp.AutoTuneCombination(types, layouts)]

    def launch(self, x: Any, components: int) -> tuple[str, str, Any, Any]:
        """The kernel for this node, and the size of its grid as an expression of the batch."""
        channels, *spatial = tuple(x.shape)[1:]
        if min(channels, *spatial) < 0:
            raise ValueError(f"only the batch may be dynamic, got {x.shape}")
        pixels = math.prod(spatial)
        kernel = self._compile(
            dtype=self._dtype(x),
            components=components,
            channels=channels,
            pixels=pixels,
            channels_last=x.format != self.trt.TensorFormat.LINEAR,
            residual=self.form.residual,
            relu=self.form.relu,
            posterior=self.with_posterior,
            images=(x.shape.opt if x.shape.is_dynamic else x.shape)[0],
        )
        pixel_count = x.shape_expr[0] * pixels
        arguments = self.trtp.SymIntExprs(3)
        for index, value in enumerate((pixel_count, channels, pixels)):
            arguments[index] = self.trtp.SymInt32(value)
        return kernel.contract.entry, kernel.ptx, self._launch_parameters(kernel.contract, pixel_count), arguments

    def _launch_parameters(self, contract: LaunchContract, pixel_count: Any) -> Any:
        parameters = self.trtp.KernelLaunchParams()
        parameters.grid_x = self.trtp.cdiv(pixel_count, contract.spec.launch.block_pixels)
        parameters.block_x = contract.threads
        parameters.shared_mem = contract.shared_bytes
        return parameters

    def _dtype(self, x: Any) -> DataType:
        return next(name for name in _DTYPES if getattr(self.trt, name) == x.dtype)
