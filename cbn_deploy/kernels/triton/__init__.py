"""The layer on NVIDIA GPUs: Triton kernels for inference and training, and their ahead-of-time PTX (docs/gpu.md).

Importing this package imports no Triton; :mod:`cbn_deploy.kernels.triton.launch` and
:mod:`cbn_deploy.kernels.triton.contract` never do.
"""
