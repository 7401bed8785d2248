"""An exported graph in onnxruntime on the CPU, by either of the op's implementations."""

from __future__ import annotations

import onnx
import onnxruntime

from cbn_deploy.native_library import NativeLibrary, native_library
from cbn_deploy.runtime.native_layouts import native_layout_session
from export.op import DOMAIN

__all__ = ["native_kernels", "ort_session"]


def native_kernels(model: onnx.ModelProto) -> NativeLibrary | None:
    """The native library, where it is installed and the graph has nodes for it."""
    return native_library() if any(node.domain == DOMAIN for node in model.graph.node) else None


def ort_session(model: onnx.ModelProto, native: NativeLibrary | None = None) -> onnxruntime.InferenceSession:
    """The model on the CPU: by the op's standard-ops bodies, or by the kernels of ``native`` as a Session runs them."""
    content = model.SerializeToString()
    if native is None:
        return onnxruntime.InferenceSession(content, _options(None), providers=["CPUExecutionProvider"])
    return native_layout_session(content, lambda: _options(native))[0]


def _options(native: NativeLibrary | None) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # torch's threads work in turn with these; spinning ones would only take the cores from them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if native is not None:
        options.register_custom_ops_library(str(native.path))
    return options
