"""Run an exported model: one small :class:`Session` interface, one file per runtime. Imports no torch."""

from cbn_deploy.runtime.description import ModelDescription, Preprocessing, shot_group
from cbn_deploy.runtime.session import Prediction, Session, SessionInfo

__all__ = ["ModelDescription", "Prediction", "Preprocessing", "Session", "SessionInfo", "shot_group"]
