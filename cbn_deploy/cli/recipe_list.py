"""What `cbn-train --list` prints: the recipes by table of the paper, or the settings of one recipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cbn_deploy.training.catalog import RECIPES, find_sections, get_recipe, unknown_recipe
from cbn_deploy.training.experiments import SECTIONS, Section
from cbn_deploy.training.published import per_cent_as_printed, published_results
from cbn_deploy.training.recipe import Recipe, setting_help, unused_settings

__all__ = ["print_recipes", "print_settings"]


def print_recipes(console: Console, pattern: str | None) -> None:
    """Every recipe, or those that match ``pattern``, see :func:`cbn_deploy.training.catalog.find_sections`.

    Raises:
        RecipeError: nothing matches.
    """
    start = [recipe for name, recipe in RECIPES.items() if pattern is None or pattern.lower() in name]
    sections = SECTIONS if pattern is None else find_sections(pattern)
    if not (start or sections):
        raise unknown_recipe(str(pattern))
    if start:
        console.print(_start_table(start))
    for section in sections:
        console.print(_section_table(section))


def print_settings(console: Console, recipe: Recipe) -> None:
    """Every setting that has an effect in the recipe: key, value, what it may be; and the names of the others."""
    table = Table(title=f"Settings of {recipe.name} (--set KEY=VALUE)")
    for column in ("key", "value", "may be"):
        table.add_column(column, overflow="fold")
    for key, value, allowed in setting_help(recipe):
        table.add_row(key, str(value).lower() if value is None or isinstance(value, bool) else str(value), allowed)
    console.print(table)
    console.print(
        f"Without effect here, so not listed: {', '.join(unused_settings(recipe))}. "
        "A --set that needs one lists it, too, as loss.classification=focal does loss.focal_gamma.",
        highlight=False,
        markup=False,
    )


def _start_table(recipes: list[Recipe]) -> Table:
    table = Table(title="To start from")
    for column in ("recipe", "model", "epochs", "batch", "lr", "needs --data"):
        table.add_column(column, overflow="fold")
    for recipe in recipes:
        schedule, lr = recipe.schedule, f"{recipe.optimizer.lr:g}"
        needs_data = "no" if recipe.data.source == "digits-lt" else "yes"
        table.add_row(recipe.name, recipe.model, str(schedule.epochs), str(schedule.batch_size), lr, needs_data)
    return table


def _section_table(section: Section) -> Table:
    table = Table(title=f"{section.title}: {section.caption}")
    table.add_column("recipe", no_wrap=True)  # a name is for copying
    table.add_column("in the paper", overflow="fold")
    table.add_column("top-1 %", justify="right")
    table.add_column("epochs", justify="right")
    for row in section.rows:
        recipe = get_recipe(row.name)
        figure = _published(section.title, recipe.name)
        table.add_row(row.name, row.label, figure, str(recipe.schedule.epochs))
    return table


def _published(source: str, experiment: str) -> str:
    figures = [row.top1 for row in published_results() if (row.source, row.experiment) == (source, experiment)]
    return per_cent_as_printed(figures[0]) if figures else "-"
