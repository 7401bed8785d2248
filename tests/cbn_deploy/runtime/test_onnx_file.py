"""Reading an ONNX file's own description without onnx."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

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


@pytest.mark.parametrize("name", [b"images", b"logits"])
def test_names_that_are_not_text(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(colour_model().SerializeToString().replace(name, name[:-1] + b"\xff"))
    with pytest.raises(ModelFileError, match="codec can't decode"):
        read_onnx_file(path)


# A tensor whose numbers are in another file can be in any of these places; the last of the graph's nodes holds it.
PLACES: dict[str, Callable[[onnx.ModelProto, onnx.TensorProto], None]] = {
    "initializer": lambda model, t: model.graph.initializer.append(t),
    "sparse initializer": lambda model, t: model.graph.sparse_initializer.append(_sparse(t)),
    "sparse indices": lambda model, t: model.graph.sparse_initializer.append(onnx.SparseTensorProto(indices=t)),
    "attribute": lambda model, t: _attribute(model, helper.make_attribute("value", t)),
    "list attribute": lambda model, t: _attribute(model, helper.make_attribute("values", [t])),
    "sparse attribute": lambda model, t: _attribute(model, helper.make_attribute("value", _sparse(t))),
    "sparse list attribute": lambda model, t: _attribute(model, helper.make_attribute("values", [_sparse(t)])),
    "subgraph": lambda model, t: _attribute(model, helper.make_attribute("body", _graph(t))),
    "list of subgraphs": lambda model, t: _attribute(model, helper.make_attribute("bodies", [_graph(t)])),
    "function": lambda model, t: model.functions[0].node[0].attribute.append(helper.make_attribute("value", t)),
    "function default": lambda model, t: model.functions[0].attribute_proto.append(helper.make_attribute("value", t)),
    "training": lambda model, t: model.training_info.add().algorithm.initializer.append(t),
    "training start": lambda model, t: model.training_info.add().initialization.initializer.append(t),
}


def _sparse(values: onnx.TensorProto) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=values, dims=[8])


def _graph(tensor: onnx.TensorProto) -> onnx.GraphProto:
    return helper.make_graph([], "body", [], [], [tensor])


def _attribute(model: onnx.ModelProto, attribute: onnx.AttributeProto) -> None:
    model.graph.node[-1].attribute.append(attribute)


def _tensor(location: int | None = None, file: str | None = None) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "more")
    if location is not None:
        tensor.data_location = location
    if file is not None:
        tensor.external_data.add(key="location", value=file)
    return tensor


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_refused_wherever_it_is(tmp_path: Path, place: str) -> None:
    for tensor in (_tensor(), _tensor(onnx.TensorProto.DEFAULT)):
        model = colour_model()
        PLACES[place](model, tensor)
        read_onnx_file(write_colour_model(tmp_path / "inside.onnx", model))
    for tensor in (_tensor(onnx.TensorProto.EXTERNAL, "etc/passwd"), _tensor(onnx.TensorProto.EXTERNAL)):
        model = colour_model()
        PLACES[place](model, tensor)
        with pytest.raises(ModelFileError, match="keeps tensors in other files"):
            read_onnx_file(write_colour_model(tmp_path / "outside.onnx", model))


@pytest.mark.parametrize(
    "location",
    [b"\x70\x01", b"\x70\x81\x00", b"\xf0\x00\x01", b"\x70\x00\x70\x01", b"\xf0\x80\x80\x80\x10\x01"],
    ids=["usual", "long value", "long tag", "twice", "tag of 33 bits"],
)
def test_no_spelling_of_another_file_gets_by(tmp_path: Path, location: bytes) -> None:
    content = colour_model().SerializeToString()
    tensor = _tensor().SerializeToString() + location
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    path = tmp_path / "outside.onnx"
    path.write_bytes(content + b"\x3a" + bytes([len(graph)]) + graph)  # a second graph field adds to the first
    with pytest.raises(ModelFileError, match=r"keeps tensors in other files|not an ONNX file"):
        read_onnx_file(path)


def test_subgraphs_deeper_than_python_can_recurse(tmp_path: Path) -> None:
    graph = _graph(_tensor(onnx.TensorProto.EXTERNAL, "etc/passwd")).SerializeToString()
    for _ in range(3000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            graph = tag + _varint(len(graph)) + graph
    path = tmp_path / "deep.onnx"
    path.write_bytes(colour_model().SerializeToString() + b"\x3a" + _varint(len(graph)) + graph)
    with pytest.raises(ModelFileError, match="keeps tensors in other files"):
        read_onnx_file(path)


def _varint(value: int) -> bytes:
    """Of up to 28 bits, in four bytes."""
    return bytes([value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14 & 0x7F | 0x80, value >> 21])
