"""The tolerances of comparisons with a reference, with their reasons; relative first, absolute second (``allclose``).

A number at an assertion itself is either float64's rounding or says there what it is.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    """``|actual - expected| <= atol + rtol |expected|``, and why that much."""

    rtol: float
    atol: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(1e-9, 1e-11, "float64 against float64: rounding of a few thousand additions"),
    "float64 gradient": Tolerance(
        1e-8, 1e-10, "two arrangements of the gradient in float64; a few pixels that are each other's mean cancel"
    ),
    "float32 layer": Tolerance(
        1e-4, 2e-5, "float32 sums over D <= 70 channels and some hundred pixels, then a softmax"
    ),
    "float32 training": Tolerance(
        1e-4, 1e-4, "'float32 layer', with sums over all pixels; relative to the largest gradient above 1"
    ),
    "layer float16": Tolerance(2e-3, 2e-3, "a frozen layer's result near 1: four roundings to float16, 2^-11 each"),
    "layer bfloat16": Tolerance(1e-2, 1e-2, "the same in bfloat16: two to three roundings of 2^-8"),
    "graph float16": Tolerance(2e-3, 5e-3, "an op, a sum and an activation, each rounded to 2^-11, of values up to 3"),
    "float32 batch norm gradient": Tolerance(
        1e-4, 1e-4, "'float32 batch norm', through a square and statistics whose parts nearly cancel"
    ),
    "float32 batch norm": Tolerance(1e-5, 5e-6, "M = 1 in float32 against torch's own kernel: two orders of summation"),
    "float32 offset": Tolerance(1e-3, 1e-3, "inputs near 1e4 carry an input rounding of 6e-4 before any arithmetic"),
    "two float32 runs": Tolerance(
        1e-3, 1e-4, "the same run on one process and on two: other sums in float32, which a few dozen steps magnify"
    ),
    "bf16 training": Tolerance(
        3e-2, 0.0, "mean losses of four steps of ResNet-8: every convolution's inputs and output rounded to 2^-8"
    ),
    "runtime float32": Tolerance(1e-5, 1e-5, "a mean of 64 float32 pixels times 10, and a softmax over three colours"),
    "rounding ties": Tolerance(
        0.0,
        3e-2,
        "of the largest logit: float32 sums in another order turn a few 8-bit activations in a million by one step; of "
        "200 digits through 20 layers 6 differ at all, by 1.1e-2 at most",
    ),
    "runtime model": Tolerance(1e-4, 1e-4, "the export's own limit: a float32 network of 20 layers, frozen or not"),
    "served probability": Tolerance(
        1e-3, 1e-5, "softmax of logits that agree within 1e-4, averages of such posteriors"
    ),
    "converted network": Tolerance(
        1e-4, 1e-4, "float32 through 53 layers of up to 2048 channels, M equal components instead of one batch norm"
    ),
    "two paths of a network": Tolerance(
        1e-3, 1e-3, "float32 through all layers of a network twice, once by statistics of M groups that are equal"
    ),
    "loss": Tolerance(1e-6, 1e-6, "the class prior is kept in float32, the rest is float64"),
    "class table": Tolerance(1e-6, 0.0, "one number a class in float32, made in float64"),
    "loss minimum": Tolerance(1e-4, 1e-6, "a minimum found by L-BFGS in float64; the tables of the loss are float32"),
    "calibration error": Tolerance(1e-5, 1e-6, "torchmetrics adds its bins in float32"),
    "flat minimum": Tolerance(
        0.0, 1e-6, "a minimiser that sees values only: near the minimum they differ by the square of the distance"
    ),
    "op float32": Tolerance(
        32 * 2.0**-24,
        1e-30,
        "times the condition number of tests/reference/op_float64.py: logits err by k u times the sum of their terms' "
        "magnitudes, the posterior by what its softmax makes of that, Y by the posterior's error and its own rounding; "
        "k = 32 leaves room for sums of 70 channels and tables rounded a few times",
    ),
    "op float16": Tolerance(2.0**-11, 6e-8, "one rounding of the result to float16 on top of 'op float32'"),
    "op bfloat16": Tolerance(2.0**-8, 1e-30, "one rounding of the result to bfloat16 on top of 'op float32'"),
    "op bfloat16, truncated": Tolerance(
        2.0**-7, 1e-30, "Triton's interpreter cuts off where the compiled kernel rounds (cvt.rn, seen in its PTX)"
    ),
    "training pass": Tolerance(
        2e-5, 1e-6, "of the largest number: float32 sums over up to 515 channels, a softmax, sums over 200 pixels"
    ),
    "training pass float16": Tolerance(1e-3, 1e-6, "one rounding to float16, 2^-11, on top of 'training pass'"),
    "training pass bfloat16, truncated": Tolerance(
        2.0**-7, 1e-6, "one truncation to bfloat16 by Triton's interpreter (see above), on top of 'training pass'"
    ),
    "training table": Tolerance(
        5e-6, 1e-7, "(M, D) float32 tables: a dozen roundings; the interpreter adds 256 parts one after the other"
    ),
    "exported logits": Tolerance(
        0.0, 1e-4, "the exporter's own promise (export/limits.py), relative to the largest |logit| of an image above 1"
    ),
    "exported figures": Tolerance(
        1e-3, 1e-4, "means of functions of logits that agree within 'exported logits', and a temperature fitted to few"
    ),
    "exported posterior": Tolerance(
        0.0, 1e-3, "two float32 runtimes; rounding of every layer before it moves a posterior near a decision boundary"
    ),
    "served tensor": Tolerance(
        1e-5, 0.0, "the colour model in float32, a mean of up to 50,000 positive pixels; the wire itself loses nothing"
    ),
    "reduced decoding": Tolerance(
        0.0, 1.0, "mean |difference|, of 255: two ways to average pixels; a part that is four pixels off gives more"
    ),
}


def tolerance(name: str) -> dict[str, float]:
    """``rtol`` and ``atol`` of a row, as keyword arguments of ``assert_allclose``."""
    row = TOLERANCES[name]
    return {"rtol": row.rtol, "atol": row.atol}
