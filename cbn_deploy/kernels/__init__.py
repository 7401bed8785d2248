"""Ways to compute the frozen layer. Importing this package registers ``torch.ops.cbn``."""

from cbn_deploy.kernels.torch_ops import compound_batch_norm, compound_batch_norm_posterior

__all__ = ["compound_batch_norm", "compound_batch_norm_posterior"]
