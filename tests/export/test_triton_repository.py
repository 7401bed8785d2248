"""The model repository as Triton's own message definition, ONNX Runtime's loader and our server read it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path, PurePosixPath

import numpy as np
import onnxruntime
import pytest

from cbn_deploy.errors import OutputError
from cbn_deploy.native_library import native_library
from cbn_deploy.runtime.factory import open_session
from cbn_deploy.runtime.self_test import self_test_images
from export import ExportOptions, export_checkpoint
from export.cli import main
from export.triton_repository import RepositoryOptions, write_repository
from tests.checkpoints import CLASS_NAMES
from tests.reference.tolerances import tolerance
from tests.serving.server import Server

needs_library = pytest.mark.skipif(native_library() is None, reason="the native library was not built")


@pytest.fixture(scope="module")
def model_path(checkpoint_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    return export_checkpoint(checkpoint_path, path, ExportOptions(with_posterior=True, inputs=32)).path


def write(model: Path, folder: Path, **options):
    folder.parent.mkdir(exist_ok=True)
    return write_repository(lambda path: shutil.copyfile(model, path), folder, RepositoryOptions(**options))


def parsed(folder: Path):
    """Google's parser and Triton's message: an unknown field or a wrong type is an error."""
    pytest.importorskip("tritonclient.grpc")
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig()), model_config_pb2


@needs_library
def test_the_configuration_is_tritons(model_path, tmp_path):
    folder = tmp_path / "repository" / "birds"
    result = write(model_path, folder, max_batch=16, seen_at=PurePosixPath("/srv/repo"))
    config, messages = parsed(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("birds", "onnxruntime", 16)
    (images,) = config.input
    assert (images.name, images.data_type, list(images.dims)) == ("images", messages.TYPE_FP32, [3, 32, 32])
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [output.name for output in config.output] == [output.name for output in session.get_outputs()]
    for output, real in zip(config.output, session.get_outputs(), strict=True):
        assert list(output.dims) == [size if isinstance(size, int) else -1 for size in real.shape[1:]], output.name
        assert output.label_filename == ("labels.txt" if output.name == "logits" else "")
    assert config.HasField("dynamic_batching")
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_CPU
    library = folder / native_library().path.name
    assert list(config.model_operations.op_library_filename) == [f"/srv/repo/birds/{library.name}"]
    assert library.read_bytes() == native_library().path.read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == list(CLASS_NAMES)
    assert config.model_warmup[0].inputs["images"].dims == [3, 32, 32]
    assert set(result.files) == {"1/model.onnx", "config.pbtxt", "labels.txt", library.name}
    assert [path.name for path in folder.parent.iterdir()] == ["birds"]
    assert folder.stat().st_mode & 0o055 == 0o055


@needs_library
def test_the_library_of_the_folder_answers_as_the_checkpoint_does(model_path, tmp_path):
    """What Triton's backend does: RegisterCustomOpsLibrary with the configured path, then load the file."""
    folder = tmp_path / "repository" / "birds"
    write(model_path, folder, seen_at=PurePosixPath(folder.parent))
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(parsed(folder)[0].model_operations.op_library_filename[0])
    model = folder / "1" / "model.onnx"
    fused = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    portable = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with open_session(model_path) as reference:
        images = self_test_images(reference.description.preprocessing)
        expected = reference.run(images).logits
    for session in (fused, portable):
        np.testing.assert_allclose(
            session.run(["logits"], {"images": images})[0], expected, **tolerance("exported logits")
        )


def test_without_the_library_standard_ops_are_enough(model_path, tmp_path):
    folder = tmp_path / "repository" / "birds"
    result = write(model_path, folder, with_library=False)
    config, messages = parsed(folder)
    assert not config.HasField("model_operations")
    assert config.instance_group[0].kind == messages.ModelInstanceGroup.KIND_AUTO
    assert result.library is None
    assert not list(folder.glob("*.so"))


def test_our_own_server_serves_the_folder(model_path, tmp_path):
    folder = tmp_path / "repository" / "birds"
    write(model_path, folder, with_library=native_library() is not None)
    server = Server("--model-repository", folder.parent, "--threads", 1)
    try:
        ready = server.client.get("/v2/models/birds/versions/1/ready")
        assert ready.status_code == 200, ready.text
        metadata = server.client.get("/v2/models/birds").json()
        config, _ = parsed(folder)
        for ours, tritons in zip(metadata["outputs"], config.output, strict=True):
            assert ours["name"] == tritons.name
            for size, configured in zip(ours["shape"][1:], tritons.dims, strict=True):
                assert size in (configured, -1)  # the server does not know the size of a layer's map
        picture = io.BytesIO()
        from PIL import Image

        Image.new("RGB", (32, 32), (90, 90, 90)).save(picture, "PNG")
        answer = server.client.post("/v1/classify", files={"image": picture.getvalue()}).json()
        assert answer["model"] == "birds"
        assert answer["results"][0]["predictions"][0]["label"] in CLASS_NAMES
    finally:
        server.stop()


def test_labels_are_one_line_each(tmp_path):
    from tests.onnx_models import colour_model, describe, write_colour_model

    odd = write_colour_model(tmp_path / "m.onnx", colour_model(description=describe(class_names=("a\nb", 'c"d', "é"))))
    write(odd, tmp_path / "repository" / "m", with_library=False)
    assert (tmp_path / "repository" / "m" / "labels.txt").read_text(encoding="utf-8") == 'a b\nc"d\né\n'


@pytest.mark.parametrize("name", [".hidden", "a b", "x" * 65])
def test_names_that_triton_or_our_server_would_not_take(model_path, tmp_path, name):
    with pytest.raises(OutputError, match="no model name"):
        write(model_path, tmp_path / "repository" / name, with_library=False)


def test_a_failure_leaves_nothing_and_what_exists_is_left_alone(model_path, tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_repository(fail, repository / "birds", RepositoryOptions(with_library=False))
    assert not list(repository.iterdir())
    (repository / "birds").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        write(model_path, repository / "birds", with_library=False)


def test_the_command(checkpoint_path, model_path, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cbn-export", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), capsys.readouterr()

    folder = tmp_path / "model_repository" / "digits"
    code, printed = run(model_path, "--target", "triton", "-o", folder, "--batch-sizes", "1,8,24", "--no-op-library")
    assert code == 0, printed
    assert parsed(folder)[0].max_batch_size == 24
    assert (folder / "1" / "model.onnx").read_bytes() == model_path.read_bytes()
    assert run(checkpoint_path, "--target", "triton", "-o", folder)[0] == 2  # it exists; nothing was exported
    assert run(checkpoint_path, "--repository-at", "/x")[0] == 2
    assert run(model_path, "--target", "triton", "-o", folder.parent / "a", "--repository-at", "x")[0] == 2
    assert json.dumps(sorted(path.name for path in folder.parent.iterdir())) == '["digits"]'
