"""Ways to compute the layer. Importing this package registers ``torch.ops.cbn``."""

import cbn_deploy.kernels.inference_gradient  # noqa: F401 - registers it
from cbn_deploy.kernels.all_reduce import all_reduced
from cbn_deploy.kernels.split_training import group_moments, split_normalize
from cbn_deploy.kernels.torch_ops import compound_batch_norm, compound_batch_norm_posterior
from cbn_deploy.kernels.training import mixture_normalize, mixture_statistics

__all__ = [
    "all_reduced",
    "compound_batch_norm",
    "compound_batch_norm_posterior",
    "group_moments",
    "mixture_normalize",
    "mixture_statistics",
    "split_normalize",
]
