"""The op ``CompoundBatchNormalization`` and its fused forms: names, inputs, outputs, attributes (docs/op.md).

``y = sum_j w_j (scale_j (x - mean_j) / sqrt(var_j + epsilon) + bias_j)`` for every pixel ``x`` of D channels, with
``w = softmax_j(log tau_j - density_scale / 2 * sum_d((x_d - mean_jd)^2 / v_jd + log v_jd))``, ``v = var + epsilon``.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from cbn_deploy.op_forms import OP_DOMAIN, OP_FORMS

__all__ = [
    "ADD_RELU",
    "DEFAULT_DENSITY_SCALE",
    "DEFAULT_EPSILON",
    "DOMAIN",
    "FORMS",
    "PLAIN",
    "RELU",
    "TABLES",
    "VERSION",
    "OpForm",
    "op_schema",
]

DOMAIN = OP_DOMAIN
VERSION = 1
DEFAULT_EPSILON = 1e-5
DEFAULT_DENSITY_SCALE = 1.0
TABLES = ("tau", "mean", "var", "scale", "bias")

_X_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_TABLE_DOCS = {
    "tau": "(M,) mixture weights: not negative, at least one above zero; used up to a common factor",
    "mean": "(M, D) component means",
    "var": "(M, D) component variances, var + epsilon > 0",
    "scale": "(M, D) affine scale of each component",
    "bias": "(M, D) affine bias of each component",
}


@dataclass(frozen=True)
class OpForm:
    """One form of the op.

    Attributes:
        op_type: ONNX operator name.
        residual: see :class:`cbn_deploy.op_forms.Form`.
        relu: likewise.
    """

    op_type: str
    residual: bool
    relu: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Input names in order: X, the residual if any, the five tables."""
        return ("X", "residual", *TABLES) if self.residual else ("X", *TABLES)


FORMS = {name: OpForm(name, form.residual, form.relu) for name, form in OP_FORMS.items()}
PLAIN = FORMS["CompoundBatchNormalization"]
RELU = FORMS["CompoundBatchNormalizationRelu"]
ADD_RELU = FORMS["CompoundBatchNormalizationAddRelu"]


def op_schema(form: OpForm, *, with_posterior: bool = True) -> onnx.defs.OpSchema:
    """The operator schema of ``form``, domain ``cbn``, since version 1.

    ``with_posterior=False`` leaves out the optional output, for tools that give a node every output of its schema.
    """
    parameter, option = onnx.defs.OpSchema.FormalParameter, onnx.defs.OpSchema.FormalParameterOption
    inputs = [parameter("X", "T", description="(B, D, *spatial), any number of spatial axes, also none")]
    if form.residual:
        inputs.append(parameter("residual", "T", description="shaped like X, added before the activation"))
    inputs += [parameter(name, "tensor(float)", description=_TABLE_DOCS[name]) for name in TABLES]
    outputs = [parameter("Y", "T", description="shaped like X")]
    if with_posterior:
        description = "(B, M, *spatial): w, which component claims which pixel"
        outputs.append(parameter("posterior", "tensor(float)", description=description, param_option=option.Optional))
    return onnx.defs.OpSchema(
        form.op_type,
        DOMAIN,
        VERSION,
        doc="Batch normalisation by a Gaussian mixture (Compound Batch Normalization); see docs/op.md.",
        inputs=inputs,
        outputs=outputs,
        type_constraints=[("T", _X_TYPES, "X is float32, float16 or bfloat16; the tables are float32")],
        attributes=[
            onnx.defs.OpSchema.Attribute("epsilon", onnx.helper.make_attribute("epsilon", DEFAULT_EPSILON)),
            onnx.defs.OpSchema.Attribute(
                "density_scale", onnx.helper.make_attribute("density_scale", DEFAULT_DENSITY_SCALE)
            ),
        ],
    )
