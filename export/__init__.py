"""From a checkpoint, or a network of your own, to one self-describing ``model.onnx`` whose parity is proved."""

from export.parity_report import ParityReport
from export.pipeline import ExportOptions, ExportResult, export_checkpoint, export_network
from export.to_onnx import to_onnx

__all__ = ["ExportOptions", "ExportResult", "ParityReport", "export_checkpoint", "export_network", "to_onnx"]
