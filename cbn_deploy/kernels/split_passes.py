"""The split path's passes over the pixels, in plain torch operations: the reference of the native ones.

x and the gradient of y are planes (B D, P), contiguous; a plane is one channel of one image. Tables are (B D,).
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["affine", "gradient_sums", "moments"]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every plane."""
    mean = x.mean(1)
    return mean, (x - mean[:, None]).square_().mean(1)


def gradient_sums(grad: Tensor, x: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over every plane of (x - centre) g and of g."""
    return (x - centre[:, None]).mul_(grad).sum(1), grad.sum(1)


def affine(
    x: Tensor, centre: Tensor, slope: Tensor, offset: Tensor, out: Tensor, grad: Tensor | None, gain: Tensor | None
) -> None:
    """``out`` = slope (x - centre) + offset, + gain g where a gradient is given."""
    out.copy_(x).sub_(centre[:, None]).mul_(slope[:, None]).add_(offset[:, None])
    if grad is not None and gain is not None:
        out.addcmul_(grad, gain[:, None])
