"""Settings from a TOML file, and back."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cbn_deploy.errors import SettingsError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["read_config_file", "suggest", "to_toml"]


def read_config_file(path: Path, known: Collection[str]) -> dict[str, Any]:
    """The settings in ``path``: a name, ``=`` and a value on each line, no sections.

    Args:
        path: a TOML file.
        known: the settings that there are.

    Raises:
        SettingsError: the file cannot be read, is not TOML, or has a setting that does not exist.
    """
    try:
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"The configuration file {path} cannot be read ({error.strerror or error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"The configuration file {path} is not valid TOML: {error}.") from error
    for name in settings:
        if name not in known:
            raise SettingsError(
                f"The configuration file {path} has {name!r}, which is no setting{suggest(name, known)}."
            )
    return settings


def suggest(name: str, known: Collection[str]) -> str:
    """``; did you mean ...?`` without the question mark, or nothing if no known name is like ``name``."""
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    return f"; did you mean {close[0]}" if close else ""


def to_toml(settings: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    """A file that :func:`read_config_file` reads: text, numbers, true and false, and lists of text.

    Args:
        settings: name -> value; ``None`` has no TOML and becomes a comment.
        notes: name -> a comment behind the value.
    """
    lines = []
    for name, value in settings.items():
        # JSON and TOML write these alike, but for one character that TOML wants escaped.
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        line = f"# {name} =" if value is None else f"{name} = {text}"
        lines.append(f"{line}  # {notes[name]}" if name in notes else line)
    return "\n".join(lines) + "\n"
