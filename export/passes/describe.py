"""Write the model's description into the file, so that a server needs nothing else."""

from __future__ import annotations

import onnx_ir as ir

from cbn_deploy.runtime.description import ModelDescription

__all__ = ["DescribePass"]


class DescribePass(ir.passes.InPlacePass):
    """``metadata_props`` from a :class:`ModelDescription`, and cbn-deploy as the producer."""

    def __init__(self, description: ModelDescription, producer_version: str) -> None:
        super().__init__()
        self._description = description
        self._producer_version = producer_version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Write the entries."""
        model.producer_name, model.producer_version = "cbn-deploy", self._producer_version
        model.metadata_props.update(self._description.to_metadata())
        return ir.passes.PassResult(model, True)

    def ensures(self, model: ir.Model) -> None:
        """The description reads back as it was written."""
        if ModelDescription.from_metadata(model.metadata_props).to_dict() != self._description.to_dict():
            raise ir.passes.PostconditionError("the description does not read back")
