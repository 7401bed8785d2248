"""The table of settings in docs/operations.md, made from ServingSettings so that it cannot drift.

python scripts/settings_table.py            print it
python scripts/settings_table.py --write    put it into docs/operations.md
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"


def settings_table() -> str:
    """Markdown: one line a setting."""
    from serving.settings import ServingSettings

    lines = ["| setting | default | range | |", "|---|---|---|---|"]
    for name, field in ServingSettings.model_fields.items():
        default = "CPUs / `workers`" if field.default_factory is not None else shown(field.default)
        lines.append(f"| `{name}` | {default} | {bounds(field.metadata)} | {field.description} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A default as one writes it in the file."""
    if value is None or value == ():
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def bounds(metadata: list[Any]) -> str:
    """Smallest and largest value, where there are such."""
    limits = {name: getattr(rule, name) for rule in metadata for name in ("gt", "ge", "le") if hasattr(rule, name)}
    if not limits:
        return ""
    least = f"above {limits['gt']}" if "gt" in limits else str(limits["ge"])
    return f"{least} to {limits['le']}"


def page_with_table() -> str:
    """docs/operations.md with a fresh table between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_table()}\n{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page_with_table(), encoding="utf-8")
    else:
        print(settings_table())
