"""Section 4 of the paper as recipes: every experiment of its tables and figures, made from small tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cbn_deploy.data import DataConfig, ViewConfig
from cbn_deploy.training.config import OptimizerConfig, ScheduleConfig
from cbn_deploy.training.recipe import Recipe, apply_settings

__all__ = ["ALIASES", "EXPERIMENTS", "SECTIONS", "Row", "Section"]


@dataclass(frozen=True)
class Row:
    """One line of a table, or one point of a figure: the name of its recipe (or an alias) and the paper's words."""

    name: str
    label: str


@dataclass(frozen=True)
class Section:
    """A table or figure of the paper, or what we add: title, what it shows, its rows."""

    title: str
    caption: str
    rows: tuple[Row, ...]


_METHOD = "cbn-sbn-dpl"
_ONE_PATH = "loss.paths=compound"
_NO_CONSISTENCY = "loss.consistency_weight=0"
_BASELINE = ("model=resnet32-bn", _ONE_PATH)

# Name, the paper's words, what differs from the whole method.
_TABLE_2 = (
    ("baseline", "Baseline", _BASELINE),
    ("sbn", "Baseline + SBN", ("components=1", "norm.split_groups=4", _NO_CONSISTENCY)),
    ("cbn", "Baseline + CBN", (_ONE_PATH,)),
    ("cbn-sbn", "Baseline + CBN + SBN", (_NO_CONSISTENCY,)),
    (_METHOD, "Baseline + CBN + SBN + DPL", ()),
)
_CONTROLS = (("bn-two-views", "Baseline, two consistent views", ("model=resnet32-bn", "loss.paths=two_views")),)
_CIFAR = {f"{kind}-lt/rho{rho}": (f"{kind}-lt", rho) for kind in ("cifar10", "cifar100") for rho in (100, 50, 10)}
_FIGURE_5, _FIGURE_6 = "cifar100-lt/rho100", "cifar10-lt/rho100"
_TABLE_3 = "cifar100-lt/rho100"


def _cifar(data: str) -> Recipe:
    source, rho = _CIFAR[data]
    config = DataConfig(source=source, rho=rho)  # type: ignore[arg-type]  # the table above has sources only
    return Recipe(name=f"{data}/{_METHOD}", data=config, schedule=ScheduleConfig(epochs=400))


# The paper's Section 4.2 gives one setting for all its experiments and does not say whether the large data sets
# follow it. These are MiSLAS's (ImageNet-LT, iNaturalist 2018) and PaCo's (Places-LT), competitors in these tables.
_PHOTOGRAPHS = ViewConfig(crop="resized", min_area=0.08, cutout=0, policy="imagenet")
_LARGE = {
    "imagenet-lt": Recipe(
        name=f"imagenet-lt/{_METHOD}",
        model="resnet50",
        data=DataConfig(source="imagenet-lt", image_size=224, resize_shorter=256),
        views=_PHOTOGRAPHS,
        optimizer=OptimizerConfig(lr=0.1),
        schedule=ScheduleConfig(epochs=180, batch_size=256, evaluate_every=10),
    ),
    "places-lt": Recipe(
        name=f"places-lt/{_METHOD}",
        model="resnet152",
        init_from="resnet152-394f9c45.pth",
        data=DataConfig(source="places-lt", image_size=224, resize_shorter=256),
        views=_PHOTOGRAPHS,
        optimizer=OptimizerConfig(lr=0.02),
        schedule=ScheduleConfig(epochs=30, batch_size=128, evaluate_every=5),
    ),
    "inaturalist2018": Recipe(
        name=f"inaturalist2018/{_METHOD}",
        model="resnet50",
        data=DataConfig(source="inaturalist2018", image_size=224, resize_shorter=256),
        views=_PHOTOGRAPHS,
        optimizer=OptimizerConfig(lr=0.1, weight_decay=1e-4),
        schedule=ScheduleConfig(epochs=200, batch_size=256, evaluate_every=10),
    ),
}

# Table 3: the last fifth of the epochs trains the classifier alone; RS and RW act there only, as Section 4.3 says.
_DECOUPLED = "decoupled.share=0.2"
_RE_SAMPLING, _RE_WEIGHTING = "decoupled.sampling=class_balanced", "decoupled.class_weights=effective_number"
_SECOND_STAGES = (
    ("rs", "RS", (_DECOUPLED, _RE_SAMPLING)),
    ("rw", "RW", (_DECOUPLED, _RE_WEIGHTING)),
    ("rw-rs", "RW + RS", (_DECOUPLED, _RE_WEIGHTING, _RE_SAMPLING)),
)


def _experiments() -> Iterable[Recipe]:
    for data in _CIFAR:
        for name, _, settings in (*_TABLE_2, *_CONTROLS):
            yield _named(f"{data}/{name}", _cifar(data), settings)
    for components in range(1, 9):
        if components != 4:
            yield _named(f"{_FIGURE_5}/m{components}", _cifar(_FIGURE_5), (f"components={components}",))
    for depth in (20, 44, 56, 110):
        network = f"resnet{depth}"
        yield _named(f"{_FIGURE_6}/{network}/baseline", _cifar(_FIGURE_6), (f"model={network}-bn", _ONE_PATH))
        yield _named(f"{_FIGURE_6}/{network}/{_METHOD}", _cifar(_FIGURE_6), (f"model={network}",))
    for first, settings in (("baseline", _BASELINE), ("cbn", (_ONE_PATH,))):
        for name, _, second in _SECOND_STAGES:
            yield _named(f"{_TABLE_3}/{first}-dt-{name}", _cifar(_TABLE_3), (*settings, *second))
    for data, recipe in _LARGE.items():
        yield recipe
        yield _named(f"{data}/baseline", recipe, (f"model={recipe.model}-bn", _ONE_PATH))


def _named(name: str, recipe: Recipe, settings: Iterable[str]) -> Recipe:
    return dataclasses.replace(apply_settings(recipe, settings), name=name)


EXPERIMENTS: Mapping[str, Recipe] = {recipe.name: recipe for recipe in _experiments()}

# A second name for an experiment that several tables show.
ALIASES: Mapping[str, str] = {
    f"{_FIGURE_5}/m4": f"{_FIGURE_5}/{_METHOD}",
    f"{_FIGURE_6}/resnet32/baseline": f"{_FIGURE_6}/baseline",
    f"{_FIGURE_6}/resnet32/{_METHOD}": f"{_FIGURE_6}/{_METHOD}",
}


def _table_3() -> tuple[Row, ...]:
    numbers, rows = iter(("I", "II", "III", "IV", "V", "VI", "VII", "VIII")), []
    for first, label in (("baseline", "Baseline"), ("cbn", "CBN")):
        rows.append(Row(f"{_TABLE_3}/{first}", f"({next(numbers)}) {label}"))
        for name, second, _ in _SECOND_STAGES:
            rows.append(Row(f"{_TABLE_3}/{first}-dt-{name}", f"({next(numbers)}) {label} + DT + {second}"))
    return tuple(rows)


def _figure_6() -> tuple[Row, ...]:
    rows = []
    for depth in (20, 32, 44, 56, 110):
        rows.append(Row(f"{_FIGURE_6}/resnet{depth}/baseline", f"ResNet-{depth}, batch norm"))
        rows.append(Row(f"{_FIGURE_6}/resnet{depth}/{_METHOD}", f"ResNet-{depth}, the method"))
    return tuple(rows)


SECTIONS: tuple[Section, ...] = (
    Section(
        "Table 2",
        "components of the method, ResNet-32",
        tuple(Row(f"{data}/{name}", label) for data in _CIFAR for name, label, _ in _TABLE_2),
    ),
    Section("Table 3", "decoupled training, re-weighting, re-sampling, ResNet-32", _table_3()),
    Section(
        "Table 4",
        "against other methods, ResNet-32",
        tuple(Row(f"{data}/{_METHOD}", "Ours") for data in _CIFAR),
    ),
    Section("Table 5", "ImageNet-LT, ResNet-50", (Row(f"imagenet-lt/{_METHOD}", "Ours"),)),
    Section("Table 6", "Places-LT, ResNet-152 from ImageNet weights", (Row(f"places-lt/{_METHOD}", "Ours"),)),
    Section("Table 7", "iNaturalist 2018, ResNet-50", (Row(f"inaturalist2018/{_METHOD}", "Ours"),)),
    Section(
        "Figure 5",
        "number of Gaussians, ResNet-32",
        tuple(Row(f"{_FIGURE_5}/m{components}", f"M = {components}") for components in range(1, 9)),
    ),
    Section("Figure 6", "depth of the network", _figure_6()),
    Section(
        "Controls",
        "not in the paper: what batch norm reaches with two views, or on the large data sets",
        (
            *(Row(f"{data}/{name}", label) for data in _CIFAR for name, label, _ in _CONTROLS),
            *(Row(f"{data}/baseline", "Baseline") for data in _LARGE),
        ),
    ),
)
