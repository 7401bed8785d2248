"""From 8-bit pixels to a model's input on any device, bit for bit what the server's numpy code computes."""

from __future__ import annotations

import torch
from torch import Tensor

from cbn_deploy.runtime.description import Preprocessing

__all__ = ["PixelNormalizer"]


class PixelNormalizer:
    """``(pixels / 255 - mean) / std``, channels first, as :func:`cbn_deploy.runtime.preprocessing.normalize` does it.

    A quarter of the bytes leave the worker processes and cross to the GPU if they do so before this, not after it.

    Args:
        preprocessing: mean and standard deviation.
        device: where to compute.
    """

    def __init__(self, preprocessing: Preprocessing, device: torch.device) -> None:
        self._device = device
        # A tensor of one element, because CUDA turns the division by a Python number into a multiplication.
        self._scale = torch.full((1,), 255.0, device=device)
        self._mean = torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Uint8 (..., H, W, 3) -> float32 (..., 3, H, W), contiguous, on the device.

        From pinned memory the copy runs beside what the device computes.
        """
        pixels = pixels.to(self._device, non_blocking=True)
        scaled = pixels.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format)
        return scaled.div_(self._scale).sub_(self._mean).div_(self._std)
