"""Record what the file's self-test must give: the checkpoint's logits in float64, and how far the file may be off."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from cbn_deploy.runtime.description import Preprocessing
from cbn_deploy.runtime.self_test import SelfTest, self_test_images
from cbn_deploy.runtime.signature import INPUT, LOGITS
from export.limits import LIMITS
from export.sessions import native_kernels, ort_session

__all__ = ["record_self_test"]


def record_self_test(model: nn.Module, exported: onnx.ModelProto, preprocessing: Preprocessing) -> SelfTest:
    """The self-test of ``exported``, what a CPU runs of the file, made from the network ``model`` in eval mode.

    A logit may differ from the network's in float64 by the parity gate's limit on logits, or by a few times as much as
    it does here and now if that is more: a network that amplifies rounding, or a lower precision.
    """
    images = self_test_images(preprocessing)
    with torch.inference_mode():
        exact: NDArray[np.float64] = copy.deepcopy(model).double()(torch.from_numpy(images).double()).numpy()
    deviation = np.max([np.abs(found - exact).max(axis=1) for found in _run(exported, images)], axis=0)
    size = np.maximum(1.0, np.abs(exact).max(axis=1))
    allowed = np.maximum(LIMITS["logits"].value * size, LIMITS["self-test"].value * deviation)
    return SelfTest(logits=exact, allowed=allowed)


def _run(exported: onnx.ModelProto, images: NDArray[np.float32]) -> list[NDArray[np.float64]]:
    """The file's logits by the op's bodies and, where they are installed, by the native kernels."""
    sessions = [ort_session(exported)]
    if (native := native_kernels(exported)) is not None:
        sessions.append(ort_session(exported, native))
    return [session.run([LOGITS], {INPUT: images})[0].astype(np.float64) for session in sessions]
