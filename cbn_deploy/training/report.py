"""Write a run's report: ``report.json``, ``plots/*.png`` and one self-contained ``report.html``."""

from __future__ import annotations

import base64
import json
from importlib import resources

import jinja2

from cbn_deploy.atomic import atomic_write_bytes
from cbn_deploy.runtime.description import shot_group
from cbn_deploy.training.folder import RunFolder
from cbn_deploy.training.plots import Picture, draw_pictures
from cbn_deploy.training.progress import duration
from cbn_deploy.training.published import per_cent_as_printed
from cbn_deploy.training.report_data import RunReport

__all__ = ["render_html", "write_report"]


def write_report(report: RunReport, folder: RunFolder) -> None:
    """Write every file of the report, each of them atomically.

    Raises:
        OutputError: the folder cannot be written or the disk is full.
    """
    pictures = draw_pictures(report)
    for picture in pictures:
        atomic_write_bytes(folder.plots / picture.name, picture.png)
    content = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_bytes(folder.report_json, content.encode())
    atomic_write_bytes(folder.report, render_html(report, pictures).encode())


def render_html(report: RunReport, pictures: list[Picture]) -> str:
    """The page as one string that needs no other file and no network."""
    template = (
        resources.files("cbn_deploy.training").joinpath("templates").joinpath("report.html.j2").read_text("utf-8")
    )
    # Class names come from folder names, so everything is escaped.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "figure": _figure, "data_uri": _data_uri, "duration": duration}
    return environment.from_string(template).render(report=report, pictures=pictures, shot_group=shot_group)


def _percent(fraction: float | None) -> str:
    return "–" if fraction is None else f"{100 * fraction:.1f} %"


def _figure(fraction: float | None) -> str:
    return "–" if fraction is None else f"{per_cent_as_printed(fraction)} %"


def _data_uri(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")
