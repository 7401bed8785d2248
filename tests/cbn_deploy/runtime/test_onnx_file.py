"""Reading an ONNX file's own description without onnx."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbn_deploy.errors import ModelFileError
from cbn_deploy.runtime.onnx_file import read_onnx_file, replace_metadata
from tests.onnx_models import colour_model, describe, write_colour_model


def test_description_and_functions_are_what_onnx_reads(colour_path: Path) -> None:
    file = read_onnx_file(colour_path)
    reference = onnx.load(colour_path)
    assert file.description == describe()
    assert file.description.to_metadata() == {entry.key: entry.value for entry in reference.metadata_props}
    assert file.has_functions == bool(reference.functions)
    assert file.domains == {node.domain for node in reference.graph.node}
    assert file.content == colour_path.read_bytes()


def test_flat_graph_has_no_functions(tmp_path: Path) -> None:
    import onnx.inliner

    path = write_colour_model(tmp_path / "flat.onnx", onnx.inliner.inline_local_functions(colour_model()))
    assert not read_onnx_file(path).has_functions


def test_names_outside_ascii_survive(tmp_path: Path) -> None:
    description = describe(class_names=("赤", "grün", "bleu d'azur"))
    path = write_colour_model(tmp_path / "model.onnx", colour_model(description=description))
    assert read_onnx_file(path).description.class_names == ("赤", "grün", "bleu d'azur")


@pytest.mark.parametrize("keep", [1, 2, 10, 0.25, 0.5, 0.9, -1])
def test_truncated_file_is_named_as_such(colour_path: Path, tmp_path: Path, keep: float) -> None:
    content = colour_path.read_bytes()
    cut = content[: int(len(content) * keep)] if isinstance(keep, float) else content[:keep]
    path = tmp_path / "cut.onnx"
    path.write_bytes(cut)
    with pytest.raises(ModelFileError, match=r"truncated or not an ONNX file|no graph|does not describe itself"):
        read_onnx_file(path)


def test_what_is_not_a_model_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_onnx_file(tmp_path / "absent.onnx")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_onnx_file(tmp_path)
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_onnx_file(tmp_path / "pipe.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelFileError, match="0 bytes"):
        read_onnx_file(tmp_path / "empty.onnx")
    (tmp_path / "text.onnx").write_text("This is not a model.\n" * 100)
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        read_onnx_file(tmp_path / "text.onnx")
    (tmp_path / "picture.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(1000))
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        read_onnx_file(tmp_path / "picture.onnx")


def test_undescribed_and_damaged_descriptions(tmp_path: Path) -> None:
    model = colour_model()
    del model.metadata_props[:]
    with pytest.raises(ModelFileError, match="does not describe itself"):
        read_onnx_file(write_colour_model(tmp_path / "bare.onnx", model))
    model = colour_model()
    model.metadata_props[0].value = "{"
    with pytest.raises(ModelFileError, match="damaged"):
        read_onnx_file(write_colour_model(tmp_path / "damaged.onnx", model))


@settings(deadline=None)  # the machine may be busy
@given(st.binary(min_size=1, max_size=400))
def test_any_bytes_give_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelFileError):
        read_onnx_file(path)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=200), st.text(max_size=300), max_size=4))
def test_replaced_metadata_is_what_onnx_reads(entries: dict[str, str]) -> None:
    model = colour_model()
    reference = onnx.ModelProto()
    reference.CopyFrom(model)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(reference, {**kept, **entries})
    changed = onnx.ModelProto.FromString(replace_metadata(model.SerializeToString(), entries))
    assert {p.key: p.value for p in changed.metadata_props} == {p.key: p.value for p in reference.metadata_props}
    assert len(changed.metadata_props) == len(reference.metadata_props)
    for proto in (changed, reference):
        del proto.metadata_props[:]
    assert changed == reference


def test_metadata_of_a_torn_file_is_not_replaced(colour_path: Path) -> None:
    with pytest.raises(ValueError, match="early"):
        replace_metadata(colour_path.read_bytes()[:-3], {"a": "b"})
