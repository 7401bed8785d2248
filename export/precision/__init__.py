"""Lower precision: int8, float16 and bfloat16 files, judged by their accuracy instead of by bitwise parity."""

from export.precision.accuracy import DEFAULT_MAX_DROP, AccuracyReport, AccuracyRow
from export.precision.lower import Lowered, PrecisionRequest, check_request, lower_precision
from export.precision.report import CalibrationRecord, EmulationRecord, PrecisionReport

__all__ = [
    "DEFAULT_MAX_DROP",
    "AccuracyReport",
    "AccuracyRow",
    "CalibrationRecord",
    "EmulationRecord",
    "Lowered",
    "PrecisionReport",
    "PrecisionRequest",
    "check_request",
    "lower_precision",
]
