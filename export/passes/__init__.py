"""Graph passes on onnx_ir models, one a file; the folder listing is the list of what export does to a graph.

Every pass states what it requires and what it ensures, changes the model in place and reports whether it did.
``name_nodes`` runs first; ``attach_functions`` runs after every optimiser, because optimisers inline functions away.
"""

from export.passes.add_posterior_outputs import AddPosteriorOutputsPass
from export.passes.attach_functions import AttachFunctionsPass
from export.passes.describe import DescribePass
from export.passes.fold_linear_after import FoldLinearAfterPass
from export.passes.fold_linear_before import FoldLinearBeforePass
from export.passes.fold_single_gaussian import FoldSingleGaussianPass
from export.passes.fuse_add_relu import FuseAddReluPass
from export.passes.fuse_relu import FuseReluPass
from export.passes.inline import InlineFunctionsPass
from export.passes.name_nodes import NameNodesPass
from export.passes.plugin_attributes import PluginAttributesPass
from export.passes.to_sixteen_bits import ToSixteenBitsPass

__all__ = [
    "AddPosteriorOutputsPass",
    "AttachFunctionsPass",
    "DescribePass",
    "FoldLinearAfterPass",
    "FoldLinearBeforePass",
    "FoldSingleGaussianPass",
    "FuseAddReluPass",
    "FuseReluPass",
    "InlineFunctionsPass",
    "NameNodesPass",
    "PluginAttributesPass",
    "ToSixteenBitsPass",
]
