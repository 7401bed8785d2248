"""Where settings come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cbn_deploy.errors import SettingsError
from cbn_deploy.runtime.factory import available_cpus
from serving.config_file import read_config_file, to_toml
from serving.settings import load_settings, unknown_variables


def test_a_flag_beats_the_environment_which_beats_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(models=["m.onnx"]).max_queue == 64
    monkeypatch.setenv("CBN_MAX_QUEUE", "7")
    assert load_settings(models=["m.onnx"]).max_queue == 7
    assert load_settings(models=["m.onnx"], max_queue=None).max_queue == 7
    assert load_settings(models=["m.onnx"], max_queue=9).max_queue == 9


def test_models_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(models=["runs/birds.onnx", "fish=runs/2/model.onnx"])
    assert [(m.name, m.path) for m in settings.models] == [
        ("birds", Path("runs/birds.onnx")),
        ("fish", Path("runs/2/model.onnx")),
    ]
    monkeypatch.setenv("CBN_MODELS", "a.onnx, b=c.onnx")
    assert [m.name for m in load_settings().models] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "cbn-serve MODEL.onnx"),
        ({"models": []}, "--model-repository"),
        ({"models": ["a/model.onnx", "b/model.onnx"]}, "NAME=PATH"),
        ({"models": ["sp ace.onnx"]}, "NAME=PATH"),
        ({"models": ["../=x.onnx"]}, "NAME=PATH"),
        ({"models": ["m.onnx"], "port": 70_000}, "--port"),
        ({"models": ["m.onnx"], "max_queue": 0}, "--max-queue"),
        ({"models": ["m.onnx"], "timeout": float("nan")}, "--timeout"),
        ({"models": ["m.onnx"], "timeout": -1}, "--timeout"),
        ({"models": ["m.onnx"], "runtime": "tensorflow"}, "--runtime"),
        ({"models": ["m.onnx"], "max_upload_bytes": "many"}, "CBN_MAX_UPLOAD_BYTES"),
    ],
)
def test_impossible_settings_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        load_settings(**arguments)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_there_may_have_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("lr=0.1") / "model.onnx"
    assert load_settings(models=[str(file)]).models[0].name == "lr"
    file.parent.mkdir()
    file.touch()
    for text, name in ((str(file), "model"), (f"low={file}", "low")):
        assert [(m.name, m.path) for m in load_settings(models=[text]).models] == [(name, file)]


def test_a_folder_is_offered_as_one_of_models(tmp_path: Path) -> None:
    for text in (str(tmp_path), f"a={tmp_path}"):
        with pytest.raises(SettingsError, match=f"is a folder; .*--model-repository {tmp_path}"):
            load_settings(models=[text])
    assert load_settings(models=["a=" + "long" * 2000]).models[0].name == "a"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_environment_beats_the_file_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = write(tmp_path / "cbn.toml", 'models = ["b=x.onnx"]\nmax_queue = 3\nmax_delay = 1\naccess_log = false\n')
    settings = load_settings(config=file)
    assert (settings.max_queue, settings.max_delay, settings.access_log) == (3, 1.0, False)
    assert [model.name for model in settings.models] == ["b"]
    assert settings.max_batch == 32
    monkeypatch.setenv("CBN_MAX_QUEUE", "7")
    monkeypatch.setenv("cbn_max_delay", "2")
    assert load_settings(config=file).max_queue == 7
    assert load_settings(config=file).max_delay == 2.0
    assert load_settings(config=file, max_queue=9).max_queue == 9
    monkeypatch.setenv("CBN_CONFIG", str(file))
    assert load_settings().access_log is False
    other = write(tmp_path / "other.toml", 'models = ["m.onnx"]\n')
    assert load_settings(config=other).access_log is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_qeue = 3", "did you mean max_queue"),
        ("max-queue = 3", "did you mean max_queue"),
        ("zzz = 3", "'zzz', which is no setting."),
        ("[server]\nport = 1", "'server', which is no setting"),
        ("max_queue = ", "not valid TOML"),
        ("max_queue = 0", "max_queue in"),
        ('max_queue = "many"', "max_queue in"),
        ("models = 3", "--models"),
        ("models = [3]", "--models"),
    ],
)
def test_files_that_say_nothing_sensible_are_refused(tmp_path: Path, text: str, says: str) -> None:
    file = write(tmp_path / "cbn.toml", text)
    with pytest.raises(SettingsError) as caught:
        load_settings(config=file, **({} if "models" in text else {"models": ["m.onnx"]}))
    assert says in str(caught.value)
    assert "cbn.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "absent.toml", tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingsError, match="configuration file"):
            load_settings(config=path, models=["m.onnx"])


def test_variables_that_look_like_misspelt_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CBN_MAX_QEUE", "CBN_DISABLE_NATIVE", "CBN_CONFIG", "CBN_MAX_BATCH"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables() == ["CBN_MAX_QEUE is no setting; did you mean max_queue."]


@pytest.mark.parametrize(
    "arguments",
    [
        {"cors_origins": "https://a.example/path"},
        {"cors_origins": "a.example"},
        {"cors_origins": "https://a.example,ftp://b"},
        {"tls_cert": "only.pem"},
        {"tls_key": "only.pem"},
    ],
)
def test_impossible_origins_and_half_of_tls(arguments: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"--(cors-origins|tls-cert)"):
        load_settings(models=["m.onnx"], **arguments)


def test_origins_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(models=["m.onnx"]).cors_origins == ()
    monkeypatch.setenv("CBN_CORS_ORIGINS", "https://a.example, http://[::1]:3000,")
    assert load_settings(models=["m.onnx"]).cors_origins == ("https://a.example", "http://[::1]:3000")


@given(st.dictionaries(st.sampled_from("abcdef"), st.text() | st.integers() | st.booleans() | st.lists(st.text())))
def test_what_is_written_as_toml_is_read_back(values: dict[str, object]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "cbn.toml"
        file.write_text(to_toml({**values, "g": None}, {"a": "note"}), encoding="utf-8", newline="")
        assert read_config_file(file, "abcdef") == values


def test_workers_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cpus = available_cpus()
    assert load_settings(models=["a.onnx"]).workers == 1
    monkeypatch.setenv("CBN_WORKERS", "2")
    for settings in (load_settings(models=["a.onnx"]), load_settings(models=["a.onnx"], threads=3)):
        assert settings.decode_threads == max(1, cpus // 2)
    assert settings.threads == 3
    shared = load_settings(models=["a.onnx"], workers=200)
    assert (shared.threads, shared.decode_threads) == (max(1, cpus // 200),) * 2
    with pytest.raises(SettingsError, match="--workers"):
        load_settings(models=["a.onnx"], workers=0)
