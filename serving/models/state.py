"""What has become of each version of each model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelState", "State"]

State = Literal["READY", "LOADING", "UNAVAILABLE", "UNLOADING"]


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """One version; ``reason`` is a sentence where there is something to say, else empty."""

    name: str
    version: str
    state: State
    reason: str
