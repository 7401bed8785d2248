"""What a deployable model says about itself: the metadata of ``model.onnx`` and the JSON beside an engine.

Every field becomes one ``metadata_props`` entry ``cbn.<field>`` whose value is JSON, so that any reader can use it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cbn_deploy.errors import ModelFileError

__all__ = [
    "ENERGY_LEVELS",
    "FORMAT_VERSION",
    "Interpolation",
    "ModelDescription",
    "Preprocessing",
    "ShotGroup",
    "check_text",
    "frequency_order",
    "shot_group",
]

FORMAT_VERSION = 1
# Levels of the energy quantiles that a file carries. The energies of familiar images matter at their upper end, where a
# threshold that rejects a few of them lies.
ENERGY_LEVELS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_PREFIX = "cbn."
_LARGEST_NUMBER = 2**63 - 1  # larger whole numbers are none to many who read JSON

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
ShotGroup = Literal["many", "medium", "few"]


def shot_group(training_count: int) -> ShotGroup:
    """The long-tail literature's groups by TRAINING count: many > 100, medium 20..100, few < 20."""
    if training_count > 100:
        return "many"
    return "medium" if training_count >= 20 else "few"


def frequency_order(training_counts: Sequence[int]) -> list[int]:
    """Class indices, most training images first, ties in class order."""
    return sorted(range(len(training_counts)), key=lambda k: (-training_counts[k], k))


def check_text(plain: Mapping[str, Any]) -> None:
    """Demand that ``plain``, of JSON's types, can be written as JSON in UTF-8: half a surrogate pair cannot.

    Raises:
        ValueError: it cannot.
        TypeError: it is not of JSON's types.
        RecursionError: it is nested too deeply.
    """
    json.dumps(plain, ensure_ascii=False).encode()


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input; training's evaluation view and the server both read it.

    Attributes:
        height: input height in pixels.
        width: input width in pixels.
        resize_shorter: first resize so that the shorter edge has this many pixels, then crop the centre; ``None``
            resizes straight to ``(height, width)``.
        interpolation: resampling filter of that resize.
        mean: per-channel mean, of pixel values in 0..1.
        std: per-channel standard deviation, of pixel values in 0..1.
        channel_order: always "RGB".
    """

    height: int
    width: int
    resize_shorter: int | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel_order: Literal["RGB"] = "RGB"

    def __post_init__(self) -> None:
        for pixels in (self.height, self.width, self.resize_shorter or 0):
            operator.index(pixels)  # TypeError unless it is a whole number
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, got {self.height} x {self.width}")
        if self.resize_shorter is not None and self.resize_shorter < max(self.height, self.width):
            raise ValueError(
                f"resize_shorter={self.resize_shorter} is smaller than the crop {self.height}x{self.width}"
            )
        if self.interpolation not in get_args(Interpolation):
            raise ValueError(f"interpolation must be one of {get_args(Interpolation)}, got {self.interpolation!r}")
        if self.channel_order != "RGB":
            raise ValueError(f"channel_order must be 'RGB', got {self.channel_order!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three values, std above 0, got {self.mean} and {self.std}")


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything that a server, an evaluator or a person needs to know about a model file.

    Attributes:
        class_names: K names, in the order of the logits.
        class_counts: K training counts, so that shot groups can be reported.
        preprocessing: image -> input tensor.
        architecture: registry name, such as "resnet32".
        components: M, the number of Gaussians per layer (0 for a batch-norm model).
        training_prior: K class probabilities that ``softmax(logits / temperature)`` assumes, which prior correction
            starts from: the training frequencies after plain cross-entropy, uniform after a balanced softmax, whose
            loss adds the log frequencies to the logits during training only.
        source_sha256: SHA-256 of the checkpoint that was exported (empty in a checkpoint).
        tool_versions: package name -> version, of what made the file.
        precision: arithmetic of an exported file: "fp32", "fp16" or "bf16" (weights and activations) or "int8"
            (convolutions).
        parity: the report of the export's gate (empty in a checkpoint): parity for fp32, otherwise calibration and
            accuracy.
        temperature: T, above 0, for which ``softmax(logits / T)`` is calibrated (:mod:`.probabilities`), fitted by
            ``cbn-eval --calibrate --write-temperature``; ``None``: the model was never calibrated, which is T = 1.
        energy_quantiles: shot group of the predicted class, or "all" -> the energies -logsumexp(logits) of real
            held-out images at :data:`ENERGY_LEVELS`; a group of too few images is left out. Empty: never measured.
        occupancy: layer -> the share of the pixels of real held-out images that each Gaussian claims, (M,), sums to 1.
            Empty: never measured.
        self_test: what synthetic images must give (:class:`cbn_deploy.runtime.self_test.SelfTest`); empty in a
            checkpoint.
        data_seed: ``data.seed`` of the training, by which its images were drawn or its test images held out; ``None``:
            not known (a network of one's own, a file from before this field).
        format_version: version of this layout.
    """

    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    preprocessing: Preprocessing
    architecture: str
    components: int
    training_prior: tuple[float, ...]
    source_sha256: str = ""
    tool_versions: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    parity: Mapping[str, Any] = field(default_factory=dict)
    temperature: float | None = None
    energy_quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    occupancy: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    self_test: Mapping[str, Any] = field(default_factory=dict)
    data_seed: int | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if classes < 1 or len(self.class_counts) != classes or len(self.training_prior) != classes:
            raise ValueError(
                f"class_names, class_counts and training_prior must have one entry a class, got {classes}, "
                f"{len(self.class_counts)} and {len(self.training_prior)}"
            )
        if not all(0 <= share < math.inf for share in self.training_prior) or sum(self.training_prior) <= 0:
            raise ValueError("training_prior must be numbers of at least 0, not all 0")
        if self.temperature is not None and not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be a finite number above 0, got {self.temperature}")
        for group, energies in self.energy_quantiles.items():
            if len(energies) != len(ENERGY_LEVELS) or not _ascending_numbers(energies):
                raise ValueError(f"energy_quantiles of {group!r} must be {len(ENERGY_LEVELS)} ascending numbers")
        numbers = (self.components, *self.class_counts, self.preprocessing.resize_shorter or 0)
        if max(map(abs, numbers)) > _LARGEST_NUMBER:
            raise ValueError("components, class_counts and resize_shorter must be below 2^63")
        check_text(dataclasses.asdict(self))

    @functools.cached_property
    def shot_groups(self) -> tuple[ShotGroup, ...]:
        """The shot group of each class."""
        return tuple(shot_group(count) for count in self.class_counts)

    def to_dict(self) -> dict[str, Any]:
        """A dict of plain JSON types (inverse of :meth:`from_dict`)."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> ModelDescription:
        """Rebuild from :meth:`to_dict`'s output.

        Raises:
            ModelFileError: a field is missing or malformed, or the format version is newer than this package.
        """
        try:
            version = int(plain["format_version"])
            if version > FORMAT_VERSION:
                raise ModelFileError(
                    f"The model has format version {version}, this cbn-deploy reads up to {FORMAT_VERSION}; "
                    "upgrade cbn-deploy."
                )
            preprocessing = dict(plain["preprocessing"])
            preprocessing["mean"] = tuple(float(v) for v in preprocessing["mean"])
            preprocessing["std"] = tuple(float(v) for v in preprocessing["std"])
            return cls(
                class_names=tuple(str(v) for v in plain["class_names"]),
                class_counts=tuple(int(v) for v in plain["class_counts"]),
                preprocessing=Preprocessing(**preprocessing),
                architecture=str(plain["architecture"]),
                components=int(plain["components"]),
                training_prior=tuple(float(v) for v in plain["training_prior"]),
                source_sha256=str(plain.get("source_sha256", "")),
                tool_versions=dict(plain.get("tool_versions", {})),
                precision=str(plain.get("precision", "fp32")),
                parity=dict(plain.get("parity", {})),
                temperature=None if plain.get("temperature") is None else float(plain["temperature"]),
                energy_quantiles=_number_lists(plain.get("energy_quantiles", {})),
                occupancy=_number_lists(plain.get("occupancy", {})),
                self_test=dict(plain.get("self_test", {})),
                data_seed=None if plain.get("data_seed") is None else int(plain["data_seed"]),
                format_version=version,
            )
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ModelFileError(
                f"The model's description is incomplete or damaged ({error}); export it again."
            ) from error

    def to_metadata(self) -> dict[str, str]:
        """``metadata_props`` of an ONNX file: one JSON value a field, keys prefixed with ``cbn.``."""
        return {_PREFIX + key: json.dumps(value, ensure_ascii=False) for key, value in self.to_dict().items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ModelDescription:
        """Inverse of :meth:`to_metadata`.

        Raises:
            ModelFileError: the file carries no description, or a damaged one.
        """
        ours = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
        if not ours:
            raise ModelFileError("The ONNX file does not describe itself (no cbn.* metadata); make it with cbn-export.")
        try:
            plain = {key: json.loads(value) for key, value in ours.items()}
        except (ValueError, RecursionError) as error:  # not JSON, numbers without end, lists nested without end
            raise ModelFileError(f"The model's metadata is damaged ({error}); export it again.") from error
        return cls.from_dict(plain)


def _ascending_numbers(values: Sequence[float]) -> bool:
    return all(map(math.isfinite, values)) and list(values) == sorted(values)


def _number_lists(plain: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {str(name): tuple(float(value) for value in values) for name, values in dict(plain).items()}
