"""cbn-predict against the real server, against kills, and against every kind of file that a folder may hold."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cbn_deploy.cli import predict as command
from cbn_deploy.errors import DataError, ModelFileError, OutputError, RecipeError
from cbn_deploy.prediction import PredictionOptions, predict_images
from cbn_deploy.prediction import run as run_module
from cbn_deploy.prediction.image_names import image_names
from cbn_deploy.prediction.parts import PartsFolder
from cbn_deploy.prediction.table import COLUMNS, table_format
from cbn_deploy.runtime.engine_file import description_path
from cbn_deploy.runtime.preprocessing import ImageLimits
from tests.onnx_models import colour_model, describe, write_colour_model
from tests.serving.files import bomb_png, colour
from tests.serving.server import Server

ROOT = Path(__file__).parents[3]
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return write_colour_model(folder / "colours.onnx", colour_model(description=describe(temperature=1.7)))


@pytest.fixture
def photos(tmp_path):
    """Thirty images, nested, in four formats, and what else lies about in folders."""
    folder = tmp_path / "photos"
    kinds = ("PNG", "JPEG", "WEBP", "BMP")
    for number in range(30):
        name = list(COLOURS)[number % 3]
        kind = kinds[number % 4]
        path = folder / f"{number % 5}" / f"{number:02}-{name}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(colour(*COLOURS[name], kind=kind))
    (folder / "readme.txt").write_text("no image")
    (folder / "0" / "._00-red.png").write_bytes(b"what another system leaves behind")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "small.png").write_bytes(colour(1, 2, 3))
    return folder


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def names_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.glob("[!.]*/[!.]*") if p.suffix != ".txt")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_image_is_a_row(model, photos, tmp_path, suffix):
    out = tmp_path / f"predictions{suffix}"
    result = predict_images(model, photos, out, batch_size=4, threads=2)
    rows = rows_of(out)
    assert tuple(rows[0]) == COLUMNS
    assert sorted(row["image"] for row in rows) == names_below(photos)
    assert all(row["label"] == row["image"].split("-")[1].split(".")[0] for row in rows)
    assert (result.images, result.resumed, result.errors) == (30, 0, 0)
    assert not out.with_name(out.name + ".parts").exists()
    assert not list(tmp_path.glob(".*"))


def test_the_answers_are_the_servers_own(model, photos, tmp_path):
    """Label, probability, ranking, shot group and energy, with temperature and prior, digit for digit."""
    prior = '{"blue": 0.8}'
    out = tmp_path / "predictions.jsonl"
    # The server's batches are of one image here, as ours: a runtime may round larger ones differently.
    predict_images(model, photos, out, PredictionOptions(top_k=2, prior=prior), batch_size=1, threads=1)
    server = Server(model, "--threads", 1)
    try:
        for row in rows_of(out)[::3]:
            content = (photos / row["image"]).read_bytes()
            answer = server.client.post(
                "/v1/classify", params={"top_k": 2, "prior": prior}, files={"image": content}
            ).json()["results"][0]
            best = answer["predictions"]
            assert row["top_labels"] == [line["label"] for line in best]
            assert row["top_probabilities"] == [line["probability"] for line in best]
            assert (row["label"], row["label_index"]) == (best[0]["label"], best[0]["index"])
            assert row["probability"] == best[0]["probability"]
            assert row["shot_group"] == best[0]["shot_group"]
            assert row["energy"] == answer["energy"]
    finally:
        server.stop()


def test_what_the_server_refuses_is_a_row_with_the_same_sentence(model, tmp_path):
    folder = tmp_path / "hostile"
    folder.mkdir()
    good = colour(220, 30, 30)
    files = {
        "bomb.png": bomb_png(30_000, 30_000),
        "cut.png": good[: len(good) // 2],
        "empty.jpg": b"",
        "fine.png": good,
        "large.png": bytes(60_000),
        "text.webp": b"no image at all",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.png")
    out = tmp_path / "predictions.jsonl"
    options = PredictionOptions(limits=ImageLimits(max_bytes=50_000))
    result = predict_images(model, folder, out, options, threads=1)
    rows = {row["image"]: row for row in rows_of(out)}
    assert (result.images, result.errors) == (8, 7)
    assert (rows["fine.png"]["label"], rows["fine.png"]["error"]) == ("red", None)
    server = Server(model, "--max-upload-bytes", 50_000)
    try:
        for name in ("bomb.png", "cut.png", "text.webp"):
            problem = server.client.post("/v1/classify", files={"image": files[name]})
            assert problem.status_code in (413, 415, 422)
            assert rows[name]["error"] == problem.json()["detail"]
    finally:
        server.stop()
    assert "60000 bytes" in rows["large.png"]["error"]
    assert "No such file" in rows["gone.png"]["error"]
    assert "ordinary file" in rows["pipe.png"]["error"]
    assert all(row["label"] is None and row["energy"] is None for row in rows.values() if row["error"])


def start(model: Path, source: Path, out: Path, prelude: str) -> subprocess.Popen:
    program = f"{prelude}\nfrom cbn_deploy.cli.predict import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, model, source, "--out", out, "--batch-size", "2", "--threads", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# A part of two rows each, and a model that gives the test time to strike.
SMALL_PARTS = """
import time
import cbn_deploy.prediction.run as run
from cbn_deploy.prediction.classifier import Classifier
run._PART_ROWS = 2
answer = Classifier.answer
Classifier.answer = lambda *a: (time.sleep(0.05), answer(*a))[1]
"""


def wait_for_parts(process: subprocess.Popen, parts: Path, count: int) -> None:
    while len(list(parts.glob("part-*"))) < count:
        if process.poll() is not None:
            pytest.fail(f"it ended too soon: {process.communicate()}")
        time.sleep(0.01)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_killed_run_goes_on_and_no_image_is_lost_or_twice(model, photos, tmp_path, suffix):
    """SIGKILL again and again, at moments that nobody chose; then one run to the end."""
    pytest.importorskip("pyarrow")
    out = tmp_path / f"predictions{suffix}"
    parts = out.with_name(out.name + ".parts")
    for at_least in (2, 5, 9):
        process = start(model, photos, out, SMALL_PARTS)
        wait_for_parts(process, parts, at_least)
        process.kill()
        process.communicate()
        assert not out.exists()
    (photos / "new.png").write_bytes(colour(220, 30, 30))  # not there when the run began
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    process = start(model, photos, out, SMALL_PARTS)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "were done before" in output
    assert len(kept) >= 9
    whole = tmp_path / f"whole{suffix}"
    (photos / "new.png").unlink()
    predict_images(model, photos, whole, batch_size=2, threads=1)
    assert rows_of(out) == rows_of(whole)
    assert not parts.exists()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_everything_that_was_done(model, photos, tmp_path, kind):
    out = tmp_path / "predictions.jsonl"
    parts = out.with_name(out.name + ".parts")
    prelude = SMALL_PARTS.replace("_PART_ROWS = 2", "_PART_ROWS = 8")
    process = start(model, photos, out, prelude)
    wait_for_parts(process, parts, 1)
    process.send_signal(kind)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "what is done is kept" in errors
    assert "Traceback" not in errors
    resumed = predict_images(model, photos, out).resumed
    assert resumed >= 8
    assert sorted(row["image"] for row in rows_of(out)) == names_below(photos)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_later(model, photos, tmp_path, monkeypatch):
    """A real file system limit: no file may grow beyond some bytes (RLIMIT_FSIZE), which write() reports as EFBIG."""
    out = tmp_path / "predictions.csv"
    limit = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2500, 2500))
"""
    process = start(model, photos, out, limit + SMALL_PARTS)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.startswith("Error: Cannot write")
    assert "Traceback" not in errors
    assert not out.exists()  # the parts were small enough, the table was not
    result = predict_images(model, photos, out)
    assert result.resumed == 30
    assert len(rows_of(out)) == 30


def test_a_kill_between_the_table_and_the_end_changes_nothing(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "predictions.jsonl"
    monkeypatch.setattr(Path, "unlink", _refuse_plan(Path.unlink))
    with pytest.raises(OutputError):
        predict_images(model, photos, out)
    before = out.read_bytes()
    monkeypatch.undo()
    assert predict_images(model, photos, out).resumed == 30
    assert out.read_bytes() == before


def _refuse_plan(unlink):
    def refuse(path, missing_ok=False):
        if path.name == "plan.json":
            raise OSError("killed here")
        unlink(path, missing_ok=missing_ok)

    return refuse


def unfinished(model, photos, out, monkeypatch):
    """A run that stopped after its first part."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "_PART_ROWS", 4)
        patch.setattr(PartsFolder, "finish", lambda *_: (_ for _ in ()).throw(OutputError("stop")))
        with pytest.raises(OutputError, match="stop"):
            predict_images(model, photos, out, batch_size=4)
    for part in sorted(out.with_name(out.name + ".parts").glob("part-*"))[2:5]:
        part.unlink()


def test_gaps_are_filled(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "predictions.jsonl"
    unfinished(model, photos, out, monkeypatch)
    assert predict_images(model, photos, out, batch_size=5).resumed == 18
    assert [row["image"] for row in rows_of(out)] == names_below(photos)


def test_an_unfinished_run_is_not_mixed_with_another(model, photos, tmp_path, monkeypatch):
    out = tmp_path / "predictions.jsonl"
    unfinished(model, photos, out, monkeypatch)
    with pytest.raises(OutputError, match="another top-k"):
        predict_images(model, photos, out, PredictionOptions(top_k=1))
    other = write_colour_model(tmp_path / "other.onnx", colour_model(description=describe(architecture="other")))
    with pytest.raises(OutputError, match="another model"):
        predict_images(other, photos, out)
    assert predict_images(model, photos, out).resumed == 18


def test_another_temperature_of_an_engine_is_another_model(tmp_path):
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"an engine as far as its digest goes")
    beside = description_path(engine)
    beside.write_text('{"temperature": 1.0}')
    plan = run_module._plan(engine, tmp_path, PredictionOptions())
    assert run_module._plan(engine, tmp_path, PredictionOptions()) == plan
    beside.write_text('{"temperature": 1.5}')
    changed = run_module._plan(engine, tmp_path, PredictionOptions())
    assert {key for key in plan if plan[key] != changed[key]} == {"model"}


def test_the_plan_of_an_onnx_file_is_as_it_was(model, tmp_path):
    plan = run_module._plan(model, tmp_path, PredictionOptions())
    assert plan["model"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_two_processes_do_not_write_one_table(model, photos, tmp_path):
    out = tmp_path / "predictions.jsonl"
    with PartsFolder(out, table_format(out)), pytest.raises(OutputError, match="Another process"):
        predict_images(model, photos, out)


def test_a_finished_table_is_not_replaced_by_accident(model, photos, tmp_path):
    out = tmp_path / "predictions.jsonl"
    predict_images(model, photos, out)
    before = out.read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        predict_images(model, photos, out, PredictionOptions(top_k=1))
    assert out.read_bytes() == before
    predict_images(model, photos, out, PredictionOptions(top_k=1), overwrite=True)
    assert out.read_bytes() != before


def test_a_folder_of_somebody_elses_files_is_left_alone(model, photos, tmp_path):
    theirs = tmp_path / "predictions.jsonl.parts" / "thesis.doc"
    theirs.parent.mkdir()
    theirs.write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.doc"):
        predict_images(model, photos, tmp_path / "predictions.jsonl")
    assert [path.name for path in theirs.parent.iterdir()] == ["thesis.doc"]
    assert theirs.read_text() == "years of work"


def test_a_list_of_paths(model, photos, tmp_path):
    listed = tmp_path / "list.txt"
    names = ["photos/0/00-red.png", "", "photos/1/01-green.jpeg", str(photos / "2" / "02-blue.webp"), "nowhere.png"]
    listed.write_text("\n".join(names), encoding="utf-8")
    out = tmp_path / "predictions.jsonl"
    predict_images(model, listed, out)
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [name for name in names if name]
    assert [row["label"] for row in rows] == ["red", "green", "blue", None]


def test_linked_folders_are_read_once_each(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for path in (photos / "b" / "in" / "1.png", photos / ".store" / "2.png", elsewhere / "x" / "y" / "3.png"):
        path.parent.mkdir(parents=True)
        path.touch()
    (elsewhere / "4.png").touch()
    (tmp_path / "5.png").touch()
    links = {
        "a": photos / "b",  # read in its own place, though that comes later
        "b/in/up": photos,
        "c": photos / ".store",  # hidden, so it has no place but this
        "d": photos / ".store",
        "e": elsewhere / "x",
        "f": elsewhere,
        "g.png": elsewhere / "x" / "y",
        "h": tmp_path,  # what lies around the folder is not below it
        "i": tmp_path / "nowhere",
        "j.png": photos / "j.png",
    }
    for name, target in links.items():
        (photos / name).symlink_to(target)
    (elsewhere / "x" / "back").symlink_to(photos)
    names = ["j.png", "b/in/1.png", "c/2.png", "e/y/3.png", "f/4.png"]
    assert list(image_names(photos)) == names
    (tmp_path / "again").symlink_to(photos)
    assert list(image_names(tmp_path / "again")) == names


def test_names_that_are_not_text(model, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in (b"caf\xe9.png", "日本.png".encode(), b"new\nline.png", b'a,"b".png'):
        (folder / os.fsdecode(name)).write_bytes(colour(30, 30, 220))
    for suffix in (".parquet", ".csv", ".jsonl"):
        out = tmp_path / f"predictions{suffix}"
        predict_images(model, folder, out)
        rows = rows_of(out)
        assert {row["image"] for row in rows} == {"caf\\xe9.png", "日本.png", "new\nline.png", 'a,"b".png'}
        assert {row["label"] for row in rows} == {"blue"}


def test_impossible_requests_are_one_sentence_and_leave_nothing(model, photos, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out" / "predictions.jsonl"
    cases = [
        (DataError, "holds no images", (model, empty, out)),
        (DataError, "does not exist", (model, tmp_path / "nowhere", out)),
        (ModelFileError, r"no\.onnx", (tmp_path / "no.onnx", photos, out)),
        (OutputError, "neither a .parquet", (model, photos, tmp_path / "out" / "predictions.xlsx")),
        (OutputError, "is a folder", (model, photos, empty)),
        (RecipeError, "--prior", (model, photos, out, PredictionOptions(prior="often"))),
    ]
    for error, sentence, arguments in cases:
        with pytest.raises(error, match=sentence):
            predict_images(*arguments)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_an_image_without_a_finite_answer_is_an_error_row(photos, tmp_path):
    broken = write_colour_model(tmp_path / "broken.onnx", colour_model(broken_weight=np.nan))
    out = tmp_path / "predictions.jsonl"
    assert predict_images(broken, photos, out).errors == 30
    assert {row["error"] for row in rows_of(out)} == {"The model gives no finite answer to the image."}


def test_memory_does_not_grow_with_the_number_of_images(model, tmp_path):
    """The largest resident memory of a run over 3,000 images is about that of one over 60."""
    folder = tmp_path / "many"
    folder.mkdir()
    Image.new("RGB", (64, 64), (220, 30, 30)).save(folder / "0.png")
    content = (folder / "0.png").read_bytes()
    peak = (
        "\nimport atexit, resource\natexit.register(lambda: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"
    )
    peaks = []
    for count in (60, 3000):
        for number in range(count):
            (folder / f"{number}.png").write_bytes(content)
        process = start(model, folder, tmp_path / f"{count}.jsonl", peak)
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        peaks.append(int(output.splitlines()[-1]))
    assert peaks[1] < 1.15 * peaks[0]


def test_the_command(model, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    (photos / "bad.png").write_bytes(b"bad")
    handler = signal.getsignal(signal.SIGTERM)
    out = tmp_path / "predictions.jsonl"
    monkeypatch.setattr(sys, "argv", ["cbn-predict", str(model), str(photos), "--out", str(out), "--threads", "1"])
    try:
        with pytest.raises(SystemExit) as caught:
            command.main()
        assert caught.value.code in (0, None)
        printed = capsys.readouterr().out
        assert "31 images" in printed
        assert "1 could not be classified, such as bad.png: The bytes are not a readable" in printed
        with pytest.raises(SystemExit) as caught:
            command.main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_it_needs_no_torch_and_no_pyarrow(model, photos, tmp_path):
    prelude = (
        "import sys\nsys.modules.update(dict.fromkeys(('torch', 'pyarrow', 'ray', 'fastapi', 'orjson', 'onnxscript')))"
    )
    process = start(model, photos, tmp_path / "predictions.csv", prelude)
    assert process.wait(timeout=120) == 0, process.communicate()
    process.communicate()
    process = start(model, photos, tmp_path / "predictions.parquet", prelude)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "Parquet needs pyarrow" in errors
