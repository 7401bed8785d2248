"""Lower precision: int8 and float16 files, judged by their accuracy instead of by bitwise parity."""

from export.precision.accuracy import DEFAULT_MAX_DROP, AccuracyReport, AccuracyRow
from export.precision.lower import Lowered, PrecisionRequest, check_request, lower_precision
from export.precision.report import CalibrationRecord, PrecisionReport

__all__ = [
    "DEFAULT_MAX_DROP",
    "AccuracyReport",
    "AccuracyRow",
    "CalibrationRecord",
    "Lowered",
    "PrecisionReport",
    "PrecisionRequest",
    "check_request",
    "lower_precision",
]
