"""Model files that lie where nobody serves them are told, with the place where they would be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving.model_folders import Start, put, put_bytes, refresh


def misplaced(caplog: pytest.LogCaptureFixture, repository: Path) -> dict[str, str]:
    """Each file that was warned of since the last call, and where it would have to lie; both within the folder."""
    fields = [record.fields for record in caplog.records if "in the wrong place" in record.getMessage()]
    caplog.clear()
    return {
        str(found.get("file", found.get("files"))).removeprefix(f"{repository}/"): relative(found, repository)
        for found in fields
    }


def relative(fields: dict[str, str], repository: Path) -> str:
    return str(Path(fields["move_to"]).relative_to(repository))


def test_files_that_the_layout_leaves_out_are_told_once(
    repository: Path, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(repository / "a.onnx")
    named = put(repository / "named" / "model.onnx")
    put_bytes(repository / "photos" / "model.onnx", b"of a run's folder")
    put_bytes(repository / "b" / "v2" / "model.onnx", b"")
    put_bytes(repository / "b" / "3" / "weights.onnx", b"")
    put_bytes(repository / "b" / "3" / "model.onnx", b"taken, so that its place is not free")
    put_bytes(repository / "with space.onnx", b"")
    put_bytes(repository / "_.ONNX", b"")
    put_bytes(repository / ".hidden" / "model.onnx", b"")
    put_bytes(repository / "b" / "1" / "deep" / "model.onnx", b"")
    put_bytes(repository / "b" / "2" / "notes.txt", b"")
    put_bytes(tmp_path / "outside" / "other.onnx", b"")
    (repository / "link").symlink_to(tmp_path / "outside")
    registry = start(models=[f"named={named}"])
    told = {
        "photos/model.onnx": "photos/1/model.onnx",
        "b/v2/model.onnx": "b/2/model.onnx",
        "b/3/weights.onnx": "b/4/model.onnx",
        "with space.onnx": "with-space/1/model.onnx",
        "_.ONNX": "NAME/1/model.onnx",
    }
    assert misplaced(caplog, repository) == told
    refresh(registry)
    assert misplaced(caplog, repository) == {}

    put_bytes(repository / "late" / "model.onnx", b"")
    (repository / "with space.onnx").unlink()
    refresh(registry)
    assert misplaced(caplog, repository) == {"late/model.onnx": "late/1/model.onnx"}
    put_bytes(repository / "with space.onnx", b"again")
    refresh(registry)
    assert list(misplaced(caplog, repository)) == ["with space.onnx"]


def test_a_folder_of_nothing_but_misplaced_files_does_not_flood_the_log(
    repository: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(13):
        put_bytes(repository / f"run{index:02}" / "model.onnx", b"")
    start()
    told = misplaced(caplog, repository)
    assert list(told)[:10] == [f"run{index:02}/model.onnx" for index in range(10)]
    assert list(told.items())[10:] == [("3", "NAME/VERSION/model.onnx")]
