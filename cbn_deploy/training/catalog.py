"""Every recipe by name: four to start from, and the paper's experiments (:mod:`cbn_deploy.training.experiments`)."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from dataclasses import replace

from cbn_deploy.data import DataConfig, ViewConfig
from cbn_deploy.errors import RecipeError
from cbn_deploy.training import settings
from cbn_deploy.training.config import ScheduleConfig
from cbn_deploy.training.experiments import ALIASES, EXPERIMENTS, SECTIONS, Section
from cbn_deploy.training.loss_config import LossConfig
from cbn_deploy.training.recipe import Recipe

__all__ = ["RECIPES", "find_sections", "get_recipe", "known_names", "unknown_recipe"]

_CIFAR_SCHEDULE = ScheduleConfig(epochs=400)
# One path: wherever both were trained, but for the few steps of digits-lt, it is as accurate at least, in three eighths
# of the work (docs/results.md).
_ONE_PATH = LossConfig(paths="compound")

RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="digits-lt",
            model="resnet20",
            data=DataConfig(source="digits-lt"),
            views=ViewConfig(padding=2, flip=False, autoaugment=False, cutout=8),
            schedule=ScheduleConfig(epochs=24, batch_size=32),
        ),
        Recipe(name="cifar10-lt", data=DataConfig(source="cifar10-lt"), loss=_ONE_PATH, schedule=_CIFAR_SCHEDULE),
        Recipe(name="cifar100-lt", data=DataConfig(source="cifar100-lt"), loss=_ONE_PATH, schedule=_CIFAR_SCHEDULE),
        Recipe(
            name="image-folder",
            data=DataConfig(source="image-folder", image_size=64),
            views=ViewConfig(crop="resized"),
            loss=_ONE_PATH,
            schedule=ScheduleConfig(epochs=200, batch_size=64),
        ),
    )
}


def known_names() -> tuple[str, ...]:
    """What :func:`get_recipe` takes."""
    return (*RECIPES, *EXPERIMENTS, *ALIASES)


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; an alias gives the recipe that it stands for.

    Raises:
        RecipeError: there is none.
    """
    recipe = RECIPES.get(name) or EXPERIMENTS.get(ALIASES.get(name, name))
    if recipe is None:
        raise unknown_recipe(name)
    return recipe


def find_sections(pattern: str) -> tuple[Section, ...]:
    """The paper's experiments whose name or table matches, grouped by table; empty if none does.

    Args:
        pattern: whole parts of a name ("rho100", "cifar10-lt/rho10"), else a piece of a name; part of a table's title
            ("table 3"); or a shell pattern for the whole name ("cifar10-lt/*/cbn"). Upper and lower case are alike.
    """
    wanted = pattern.lower()
    # "rho10" is not "rho100", "cbn" not "cbn-sbn"; only what is no whole part of any name may be a piece of one.
    names = [f"/{row.name}/" for section in SECTIONS for row in section.rows]
    piece = f"/{wanted}/" if any(f"/{wanted}/" in name for name in names) else wanted
    found = []
    for section in SECTIONS:
        whole = wanted in section.title.lower()
        rows = tuple(
            row for row in section.rows if whole or piece in f"/{row.name}/" or fnmatch.fnmatch(row.name, wanted)
        )
        if rows:
            found.append(replace(section, rows=rows))
    return tuple(found)


def unknown_recipe(name: str) -> RecipeError:
    """The error to raise for a name or a pattern that fits nothing; it says what is near."""
    titles = [section.title.lower() for section in SECTIONS]
    near = difflib.get_close_matches(name.lower(), [*known_names(), *titles], n=3, cutoff=0.6)
    if near and near[0] not in RECIPES:
        hint = f"did you mean {' or '.join(map(repr, near))}? `cbn-train --list` shows every recipe."
    else:
        hint = settings.suggest(name, RECIPES).removesuffix(".") + ", and the paper's (`cbn-train --list`)."
    return RecipeError(f"There is no recipe {name!r}; {hint}")
