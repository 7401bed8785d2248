"""Exchange modules of a network for others, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

__all__ = ["replace_modules"]


def replace_modules(model: nn.Module, replacement: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    """Ask ``replacement(name, module)`` for every module of ``model``, itself included, and put in what it returns.

    A module that stands in several places is asked for once, by its first name, and replaced in all of them. What is
    inside a replaced module is gone with it and not asked for.

    Args:
        model: changed in place, unless it is itself replaced.
        replacement: ``None`` leaves the module where it is.

    Returns:
        ``model``, or its replacement.
    """
    # With the module itself, so that it stays alive and its id its own.
    found: dict[int, tuple[nn.Module, nn.Module]] = {}

    def visit(name: str, module: nn.Module) -> nn.Module:
        if id(module) not in found:
            new = replacement(name, module)
            found[id(module)] = (module, module if new is None else new)
            if new is None:
                for key, child in module._modules.items():  # named_children leaves out the second of two that are one
                    if child is not None:
                        module._modules[key] = visit(f"{name}.{key}".lstrip("."), child)
        return found[id(module)][1]

    return visit("", model)
