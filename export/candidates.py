"""A checkpoint as candidates for the benchmark: the CBN network and its batch-norm twin, in every runtime.

Runtimes take part by one entry in ``RUNTIMES``.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cbn_deploy.benchmark import Candidate
from cbn_deploy.checkpoint import Checkpoint, load_model
from cbn_deploy.errors import CheckpointError, RuntimeUnavailableError
from cbn_deploy.kernels import portable
from cbn_deploy.models import BN_SUFFIX, bn_twin, create_model
from cbn_deploy.norm import FrozenCompoundBatchNorm2d, freeze
from cbn_deploy.norm.functional import compound_batch_norm_naive
from cbn_deploy.runtime.description import ModelDescription
from cbn_deploy.runtime.factory import RuntimeName, open_session
from cbn_deploy.runtime.preprocessing import normalize
from export.limits import LIMITS
from export.to_onnx import to_onnx

__all__ = ["RUNTIMES", "Entry", "Runtime", "Suite", "prepare", "unavailable"]
