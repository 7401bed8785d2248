"""How every plot of the project looks: colours that survive colour blindness and grey printers, type, tick labels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib import font_manager

from cbn_deploy.runtime.description import ShotGroup

__all__ = ["DPI", "GREY", "GROUP_COLOURS", "GROUP_MEANING", "HALO", "INK", "label_ticks", "plot_style", "rendered"]

# Three colours of Okabe and Ito's palette, which differ in lightness too, so that they survive a grey printer.
GROUP_COLOURS: dict[ShotGroup, str] = {"many": "#0072B2", "medium": "#56B4E9", "few": "#D55E00"}
GROUP_MEANING: dict[ShotGroup, str] = {
    "many": "many (> 100 training images)",
    "medium": "medium (20 to 100)",
    "few": "few (< 20)",
}
INK, GREY = "#222222", "#777777"
_STYLE = {
    "text.parse_math": False,  # class names may have dollar signs
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "text.color": INK,
    "figure.facecolor": "white",
}
# Behind a number, so that no line runs through it.
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
DPI = 130
_MAX_TICK_LABELS = 32
# For class names in scripts that the first one does not have; those that are installed are asked in this order.
_FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic")


@contextmanager
def plot_style(**more: Any) -> Iterator[None]:
    """Draw inside this; ``more`` are further settings of matplotlib. A character that no font has becomes a box."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    style = {**_STYLE, "font.family": [name for name in _FONTS if name in installed], **more}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def rendered(figure: Any, kind: str = "png") -> bytes:
    """The file's content; the same figure gives the same bytes (for SVG with a ``svg.hashsalt`` in the style).

    Args:
        figure: of matplotlib.
        kind: "png", "svg" or "pdf".
    """
    buffer = io.BytesIO()
    dates = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=dates[kind])
    return buffer.getvalue()


def label_ticks(axes: Any, positions: Any, labels: Sequence[str]) -> None:
    """Class or layer names under the bars at ``positions``: as many as fit, long ones cut and slanted.

    A second line of a label stays as it is.
    """
    stride = -(-len(labels) // _MAX_TICK_LABELS)
    shown = [_shorten(label) for label in labels[::stride]]
    flat = sum(max(map(len, label.split("\n"))) for label in shown) < 80
    rotation = {"rotation": 0} if flat else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(positions[::stride], shown, fontsize=8.5, **rotation)
    axes.set_xlim(-0.7, len(labels) - 0.3)
    axes.grid(visible=False, axis="x")


def _shorten(label: str) -> str:
    first, *rest = label.split("\n")
    return "\n".join([first if len(first) <= 24 else first[:23] + "…", *rest])
