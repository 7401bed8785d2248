"""What has become of each version of each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serving.models.files import ModelFile
from serving.models.served import ServedModel
from serving.watched_file import Fingerprint

__all__ = ["ModelState", "Slot", "State"]

State = Literal["READY", "LOADING", "UNAVAILABLE", "UNLOADING"]


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """One version; ``reason`` is a sentence where there is something to say, else empty."""

    name: str
    version: str
    state: State
    reason: str


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one version: what answers there, and what was tried last.

    Attributes:
        name: of the model.
        version: of the model.
        model: what answers; ``None``: nothing does.
        tried: the file that was loaded last, or failed to load; it is not tried again until it changes.
        state: for the repository's index.
        reason: why nothing answers, or why what answers is not what the file says.
    """

    name: str
    version: int
    model: ServedModel | None = None
    tried: Fingerprint | None = None
    state: State = "UNAVAILABLE"
    reason: str = ""

    def has_tried(self, file: ModelFile) -> bool:
        """Whether ``file`` as it is now was loaded, or failed, already."""
        return self.tried == file.fingerprint

    def as_state(self) -> ModelState:
        """For the repository's index."""
        return ModelState(name=self.name, version=str(self.version), state=self.state, reason=self.reason)
