"""The module map of docs/architecture.md, made from the modules' own first lines so that it cannot drift.

python scripts/module_map.py            print it
python scripts/module_map.py --write    put it into docs/architecture.md
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- module map: begin -->", "<!-- module map: end -->"
PACKAGES = ("cbn_deploy", "export", "serving")


def module_map() -> str:
    """Markdown: a heading a folder with its own line, then one line a module."""
    lines: list[str] = []
    for package in PACKAGES:
        for folder in sorted({path.parent for path in (ROOT / package).rglob("*.py")}):
            name = folder.relative_to(ROOT).as_posix()
            lines += ["", f"### {name}/", "", first_line(folder / "__init__.py")]
            modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            if modules:
                lines += ["", "| module | what it is |", "|---|---|"]
            lines += [f"| `{path.name}` | {first_line(path)} |" for path in modules]
    return "\n".join(lines).strip()


def first_line(path: Path) -> str:
    """First line of a module's docstring, as Markdown."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    if not docstring:
        sys.exit(f"{path.relative_to(ROOT)} has no docstring")
    return (
        docstring.splitlines()[0].replace(":class:", "").replace(":func:", "").replace(":mod:", "").replace("``", "`")
    )


def page_with_map() -> str:
    """docs/architecture.md with a fresh map between its markers."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{module_map()}\n{END}{after}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page_with_map(), encoding="utf-8")
    else:
        print(module_map())
