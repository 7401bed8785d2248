"""The frozen layer on torch tensors through the native library, in the calling thread.

torch's own thread pool cannot be reached from Python, and a second pool beside it would fight it for the cores, so one
call runs on one thread, whatever ``torch.get_num_threads`` says. Threads that call it at the same time run at the same
time: the library holds no lock and ctypes releases the GIL.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cbn_deploy.native_library import BFLOAT16, FLOAT16, FLOAT32, MAX_COMPONENTS, NativeLayer, native_library

__all__ = ["compound_batch_norm"]

_DATA_TYPES = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}


def compound_batch_norm(
    x: Tensor,
    tau: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    bias: Tensor,
    eps: float,
    density_scale: float,
    *,
    with_posterior: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """As :func:`cbn_deploy.kernels.portable.compound_batch_norm`; ``None`` where the library cannot do it.

    It can for contiguous float32, float16 and bfloat16 tensors on the CPU, where it is installed and not turned off.
    The posterior is float32, and ``None`` unless asked for.
    """
    library = native_library()
    suits = x.dtype in _DATA_TYPES and x.device.type == "cpu" and x.is_contiguous() and len(tau) <= MAX_COMPONENTS
    if library is None or not suits:
        return None
    tables = [table.to("cpu", torch.float32).contiguous() for table in (tau, mean, var, scale, bias)]
    components, channels = mean.shape
    pixels = math.prod(x.shape[2:])
    y = torch.empty_like(x)
    posterior = x.new_empty((x.shape[0], components, *x.shape[2:]), dtype=torch.float32) if with_posterior else None
    addresses = (
        tables[0].data_ptr(),
        tables[1].data_ptr(),
        tables[2].data_ptr(),
        tables[3].data_ptr(),
        tables[4].data_ptr(),
    )
    with NativeLayer(library, components, channels, addresses, eps, density_scale) as layer:
        layer.forward(
            _DATA_TYPES[x.dtype],
            x.shape[0],
            pixels,
            x.data_ptr(),
            y.data_ptr(),
            posterior=None if posterior is None else posterior.data_ptr(),
        )
    return y, posterior
