"""Classify whole folders of images offline, resumable, with the server's own decoding and numbers. Imports no torch."""

from cbn_deploy.prediction.classifier import Classifier, PredictionOptions
from cbn_deploy.prediction.ray_data import predict_dataset
from cbn_deploy.prediction.run import PredictionRun, predict_images

__all__ = ["Classifier", "PredictionOptions", "PredictionRun", "predict_dataset", "predict_images"]
