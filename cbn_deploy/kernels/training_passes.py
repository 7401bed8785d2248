"""The four passes of a training step over the pixels, in plain torch operations: the reference of the native ones.

Notation: B images, D channels, P pixels, M components. x and the gradient of y are (B, D, P), posteriors w (B, M, P),
all contiguous and of one floating dtype; tables are (M, D) or (M,). c = x - centre. Nothing is larger than x but by a
small factor: never a (B, M, D, P) tensor.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GradientTables", "Sums", "combine", "expectation", "input_gradient", "output_sums"]


class Sums(NamedTuple):
    """Sums over all pixels: ``mass`` (M,) of w, ``first`` (M, D) of w c, ``second`` (M, D) of w c^2."""

    mass: Tensor
    first: Tensor
    second: Tensor


class GradientTables(NamedTuple):
    """Constants of :func:`input_gradient`.

    With g the gradient of y, the posterior receives

        G_j = sum_d [ (gain_jd g_d + curvature_jd c_d + slope_jd) c_d + offset_jd g_d ] + constant_j

    its logits h_j = w_j (G_j - sum_k w_k G_k), and x

        sum_j gain_jd w_j g_d + sum_j (2 curvature_jd w_j + quadratic_jd h_j) c_d + sum_j (slope_jd w_j + linear_jd h_j)

    Attributes:
        gain: (M, D) A of y = sum_j w_j (A_j c + B_j).
        offset: (M, D) B.
        curvature: (M, D) what c^2 is worth to the loss through the batch's variances, a w.
        slope: (M, D) what c is worth through the batch's means and variances, a w.
        constant: (M,) what w itself is worth through them.
        quadratic: (M, D) derivative of the logit by c, its part that is proportional to c; 0 for a detached posterior.
        linear: (M, D) the constant part; 0 for a detached posterior.
    """

    gain: Tensor
    offset: Tensor
    curvature: Tensor
    slope: Tensor
    constant: Tensor
    quadratic: Tensor
    linear: Tensor


def expectation(x: Tensor, centre: Tensor, quadratic: Tensor, linear: Tensor, constant: Tensor) -> tuple[Tensor, Sums]:
    """w = softmax_j( sum_d (quadratic_jd c_d + linear_jd) c_d + constant_j ), and its sums."""
    c = x - centre[:, None]
    squares = c.square()
    logits = torch.bmm(_for_each_image(quadratic, x), squares)
    logits.baddbmm_(_for_each_image(linear, x), c).add_(constant[:, None])
    w = torch.softmax(logits, dim=1)
    return w, Sums(w.sum((0, 2)), _weighted_sum(w, c), _weighted_sum(w, squares))


def combine(x: Tensor, centre: Tensor, w: Tensor, gain: Tensor, offset: Tensor, out: Tensor) -> None:
    """``out`` = y, y_d = c_d sum_j gain_jd w_j + sum_j offset_jd w_j."""
    torch.bmm(_for_each_image(offset.t(), x), w, out=out)
    out.addcmul_(x - centre[:, None], torch.bmm(_for_each_image(gain.t(), x), w))


def output_sums(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all pixels of w c g and of w g, (M, D) each."""
    return _weighted_sum(w, (x - centre[:, None]).mul_(grad)), _weighted_sum(w, grad)


def input_gradient(grad: Tensor, x: Tensor, centre: Tensor, w: Tensor, tables: GradientTables) -> Tensor:
    """Gradient of x, see :class:`GradientTables`."""
    c = x - centre[:, None]
    worth = torch.bmm(_for_each_image(tables.gain, x), c * grad)
    worth.baddbmm_(_for_each_image(tables.curvature, x), c.square())
    worth.baddbmm_(_for_each_image(tables.slope, x), c)
    worth.baddbmm_(_for_each_image(tables.offset, x), grad)
    worth.add_(tables.constant[:, None])
    logits = w * (worth - (w * worth).sum(1, keepdim=True))
    both = torch.cat([w, logits], dim=1)
    proportional = torch.cat([2.0 * tables.curvature, tables.quadratic])
    result = torch.bmm(_for_each_image(torch.cat([tables.slope, tables.linear]).t(), x), both)
    result.addcmul_(c, torch.bmm(_for_each_image(proportional.t(), x), both))
    return result.addcmul_(grad, torch.bmm(_for_each_image(tables.gain.t(), x), w))


def _weighted_sum(w: Tensor, values: Tensor) -> Tensor:
    return torch.bmm(w, values.transpose(1, 2)).sum(0)


def _for_each_image(table: Tensor, x: Tensor) -> Tensor:
    # A plain `table @ x` copies the batch into one large matrix first.
    return table.expand(len(x), *table.shape)
