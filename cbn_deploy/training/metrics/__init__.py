"""What is measured on labelled images, one family of metrics a file, each with its equation, in float64."""

from cbn_deploy.training.metrics.calibration_error import Reliability, class_wise_errors, reliability
from cbn_deploy.training.metrics.intervals import Interval, wilson_interval
from cbn_deploy.training.metrics.outcomes import Outcomes, judge
from cbn_deploy.training.metrics.prior_shift import ShiftedScore, evaluate_prior_shift, shifted_prior
from cbn_deploy.training.metrics.temperature import Calibration, calibrate, fit_temperature, split_halves

__all__ = [
    "Calibration",
    "Interval",
    "Outcomes",
    "Reliability",
    "ShiftedScore",
    "calibrate",
    "class_wise_errors",
    "evaluate_prior_shift",
    "fit_temperature",
    "judge",
    "reliability",
    "shifted_prior",
    "split_halves",
    "wilson_interval",
]
