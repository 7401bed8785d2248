"""Rows as files: Parquet, CSV or JSON lines, by the suffix. Every format can be written in parts and joined."""

from __future__ import annotations

import csv
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cbn_deploy.errors import OutputError, RuntimeUnavailableError
from cbn_deploy.prediction.classifier import ImagePrediction

__all__ = ["COLUMNS", "TableFormat", "arrow_schema", "rows_to_arrow", "table_format"]

COLUMNS = tuple(column.name for column in dataclasses.fields(ImagePrediction))


class TableFormat(ABC):
    """How rows are written. ``suffix`` is that of its files."""

    suffix: str

    @abstractmethod
    def write(self, path: Path, rows: Sequence[ImagePrediction]) -> None:
        """Write a part.

        Raises:
            OSError: the disk is full.
        """

    @abstractmethod
    def join(self, parts: Sequence[Path], path: Path, about: Mapping[str, str]) -> None:
        """Write all rows of ``parts``, in their order, one part in memory at a time.

        Args:
            parts: files that :meth:`write` has written.
            path: the table to write.
            about: what the table says about itself, where the format has a place for it.

        Raises:
            OSError: the disk is full.
        """


class _Parquet(TableFormat):
    """One row group a part; ``about`` is the file's key-value metadata."""

    suffix = ".parquet"

    def write(self, path: Path, rows: Sequence[ImagePrediction]) -> None:
        _pyarrow().parquet.write_table(rows_to_arrow(rows), path, compression="zstd")

    def join(self, parts: Sequence[Path], path: Path, about: Mapping[str, str]) -> None:
        parquet = _pyarrow().parquet
        with parquet.ParquetWriter(path, arrow_schema().with_metadata(dict(about)), compression="zstd") as writer:
            for part in parts:
                table = parquet.ParquetFile(part).read()
                writer.write_table(table.replace_schema_metadata(dict(about)))


class _Csv(TableFormat):
    """With a header; lists are JSON in one cell."""

    suffix = ".csv"

    def write(self, path: Path, rows: Sequence[ImagePrediction]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            for row in rows:
                cells = _encodable(row).values()
                writer.writerow([json.dumps(c, ensure_ascii=False) if isinstance(c, list) else c for c in cells])

    def join(self, parts: Sequence[Path], path: Path, about: Mapping[str, str]) -> None:  # noqa: ARG002 - no place
        with path.open("wb") as file:
            file.write((",".join(COLUMNS) + "\r\n").encode())
            for part in parts:
                file.write(part.read_bytes())


class _JsonLines(TableFormat):
    """An object a line."""

    suffix = ".jsonl"

    def write(self, path: Path, rows: Sequence[ImagePrediction]) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(_encodable(row), ensure_ascii=False) + "\n" for row in rows)

    def join(self, parts: Sequence[Path], path: Path, about: Mapping[str, str]) -> None:  # noqa: ARG002 - no place
        with path.open("wb") as file:
            for part in parts:
                file.write(part.read_bytes())


def table_format(path: Path) -> TableFormat:
    """The format that the suffix of ``path`` names.

    Raises:
        OutputError: another suffix.
        RuntimeUnavailableError: Parquet, and pyarrow is not installed.
    """
    for kind in (_Parquet, _Csv, _JsonLines):
        if path.suffix.lower() == kind.suffix:
            if kind is _Parquet:
                _pyarrow()
            return kind()
    raise OutputError(f"{path} is neither a .parquet nor a .csv nor a .jsonl file; name the table by its format.")


def arrow_schema() -> Any:
    """The columns of :class:`ImagePrediction` as a ``pyarrow.Schema``."""
    pyarrow = _pyarrow()
    text, number, integer = pyarrow.string(), pyarrow.float64(), pyarrow.int32()
    types = (text, text, integer, number, text, number, pyarrow.list_(text), pyarrow.list_(number), text)
    return pyarrow.schema(list(zip(COLUMNS, types, strict=True)))


def rows_to_arrow(rows: Sequence[ImagePrediction]) -> Any:
    """The rows as a ``pyarrow.Table`` of :func:`arrow_schema`."""
    return _pyarrow().Table.from_pylist([_encodable(row) for row in rows], schema=arrow_schema())


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]  # it ships no types
    except ModuleNotFoundError as error:
        raise RuntimeUnavailableError(
            "Parquet needs pyarrow; install it with: pip install 'cbn-deploy[predict]', or write a .csv or .jsonl."
        ) from error
    return pyarrow


def _encodable(row: ImagePrediction) -> dict[str, Any]:
    """Plain types. Bytes of a file name that are not UTF-8 are written as ``\\xNN``."""
    plain = {name: getattr(row, name) for name in COLUMNS}
    for name in ("image", "error"):
        if plain[name] is not None:
            plain[name] = plain[name].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
