"""From a checkpoint to one self-describing ``model.onnx`` whose parity is proved."""

from export.parity_report import ParityReport
from export.pipeline import ExportOptions, ExportResult, export_checkpoint
from export.to_onnx import to_onnx

__all__ = ["ExportOptions", "ExportResult", "ParityReport", "export_checkpoint", "to_onnx"]
