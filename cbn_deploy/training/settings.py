"""Dotted keys into nested dataclasses: list them, parse a text for them, replace them, and go to JSON and back.

Nothing here knows what a recipe is; :mod:`cbn_deploy.training.recipe` says which dataclasses and which short names.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cbn_deploy.errors import RecipeError

__all__ = [
    "build",
    "describe_type",
    "differences",
    "get_value",
    "leaf_types",
    "parse_value",
    "replace_values",
    "suggest",
]

Config = TypeVar("Config")

_TRUE, _FALSE, _NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("none", "null")


def leaf_types(config: type[Any], prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a nested dataclass type -> its annotation, in declaration order."""
    leaves: dict[str, Any] = {}
    for name, annotation in _field_types(config).items():
        if dataclasses.is_dataclass(annotation):
            leaves |= leaf_types(annotation, f"{prefix}{name}.")  # type: ignore[arg-type]  # a field's type is a class
        else:
            leaves[prefix + name] = annotation
    return leaves


def get_value(config: object, key: str) -> Any:
    """The value at a dotted key that :func:`leaf_types` lists."""
    for name in key.split("."):
        config = getattr(config, name)
    return config


def replace_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of ``config`` with these dotted keys changed, all at once, so that the order of ``values`` is no matter.

    Raises:
        ValueError: a dataclass refuses its new values.
    """
    nested: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if rest:
            nested.setdefault(name, {})[rest] = value
        else:
            changes[name] = value
    changes |= {name: replace_values(getattr(config, name), inner) for name, inner in nested.items()}
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]  # Config is a dataclass


def build(config: type[Config], plain: Mapping[str, Any]) -> Config:
    """Inverse of ``dataclasses.asdict`` after a trip through JSON (lists become tuples again).

    Raises:
        RecipeError: a key is missing or unknown, or a value is refused by its dataclass.
    """
    hints = _field_types(config)
    unknown = set(plain) - set(hints)
    if unknown:
        raise RecipeError(f"The recipe has the unknown key {min(unknown)!r}; known are {', '.join(hints)}.")
    try:
        return config(**{name: _restore(hints[name], value) for name, value in plain.items()})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"The recipe is incomplete or damaged: {error}.") from error


def differences(ours: object, theirs: object) -> dict[str, tuple[Any, Any]]:
    """Dotted keys whose values differ between two configs of one type -> (ours, theirs)."""
    pairs = {key: (get_value(ours, key), get_value(theirs, key)) for key in leaf_types(type(ours))}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def parse_value(text: str, annotation: object) -> Any:
    """Read ``text`` as ``annotation`` (bool, int, float, str, Literal, tuple of one of these, or a union of them).

    Raises:
        ValueError: the text is none of these.
    """
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return _parse_union(text, get_args(annotation))
    if origin is Literal:
        return _parse_literal(text, get_args(annotation))
    if origin is tuple:
        return _parse_tuple(text, get_args(annotation))
    if annotation is type(None):
        return _parse_word(text, {word: None for word in _NONE})
    if annotation is bool:
        return _parse_word(text, {word: word in _TRUE for word in _TRUE + _FALSE})
    if annotation is float:
        return _parse_float(text)
    if annotation is int or annotation is str:
        return annotation(text)
    raise TypeError(f"settings of type {annotation} are not supported")


def describe_type(annotation: object) -> str:
    """What a person may type for ``annotation``, such as "a whole number or none"."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(option) for option in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(annotation))
    if origin is tuple:
        return f"comma-separated values, each {describe_type(get_args(annotation)[0])}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return names[annotation]  # type: ignore[index]  # the types above are the supported ones


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence's tail that helps after an unknown word: the nearest known one, then all of them."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}? Known are" if near else "known are"
    return f"{hint} {', '.join(known)}."


def _field_types(config: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config)}


def _restore(annotation: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} stands where there should be settings")
        return build(annotation, value)  # type: ignore[arg-type]  # a field's type is a class
    return tuple(value) if isinstance(value, list) else value


def _parse_union(text: str, options: tuple[Any, ...]) -> Any:
    for option in sorted(options, key=lambda option: option is str):  # a text accepts everything, so it comes last
        try:
            return parse_value(text, option)
        except ValueError:
            continue
    raise ValueError(text)


def _parse_literal(text: str, options: tuple[Any, ...]) -> Any:
    return _parse_word(text, {str(option): option for option in options})


def _parse_tuple(text: str, members: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",")]
    if Ellipsis not in members and len(parts) != len(members):
        raise ValueError(text)
    return tuple(parse_value(part, members[0]) for part in parts)


def _parse_word(text: str, words: Mapping[str, Any]) -> Any:
    for candidate in (text, text.lower()):
        if candidate in words:
            return words[candidate]
    raise ValueError(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value
