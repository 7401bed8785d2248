"""Train, describe and run image classifiers with Compound Batch Normalization.

Importing this package imports no torch: a server image needs only :mod:`cbn_deploy.runtime`.

onnxruntime's releases record what they run and send it to their maker. Nothing here wants that, so importing this
package, which every command does before onnxruntime, turns it off; ``ORT_DISABLE_TELEMETRY=0`` leaves it on.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
