"""The metrics of several processes as one scrape."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["merge_metrics"]


def merge_metrics(texts: Mapping[int, str]) -> str:
    """Metrics of several workers, each sample with the label ``worker``, each family described once.

    Args:
        texts: worker -> what it would answer alone, in the Prometheus text format as prometheus_client writes it:
            every family begins with its ``# HELP``.
    """
    described: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, text in texts.items():
        family, is_new = "", False
        for line in text.rstrip("\n").split("\n"):
            if line.startswith("# HELP "):
                family = line.split(" ", 3)[2]
                is_new = family not in described
                described.setdefault(family, [])
                samples.setdefault(family, [])
            if not line.startswith("#"):
                samples[family].append(_labelled(line, worker))
            elif is_new:
                described[family].append(line)
    return "".join(f"{line}\n" for family in described for line in (*described[family], *samples[family]))


def _labelled(sample: str, worker: int) -> str:
    """``name{a="b"} 1`` or ``name 1`` with one more label, in front of the others."""
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, rest = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {rest}'
