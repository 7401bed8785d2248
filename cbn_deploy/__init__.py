"""Train, describe and run image classifiers with Compound Batch Normalization.

Importing this package imports no torch: a server image needs only :mod:`cbn_deploy.runtime`.
"""

__version__ = "0.1.0"
