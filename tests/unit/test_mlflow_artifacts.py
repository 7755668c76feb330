"""``mm://`` by MLflow's own calls: listed, downloaded, verified; never written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mm_core import ModelManager

pytestmark = pytest.mark.unit

artifacts = pytest.importorskip("mlflow.artifacts")
mlflow_exceptions = pytest.importorskip("mlflow.exceptions")
FILES = {"config.json": '{"a": 1}', "deep/er/w.bin": "w" * 1000, "deep/x": "x", "empty": ""}


def push(folder: Path, files, model_id="embed/minilm", **options):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    with ModelManager() as manager:
        return manager.push(folder, model_id, **options).entry


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """The default backend, of the environment, with two versions of one model and another model."""
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    push(tmp_path / "one", {"config.json": "old"}, version="1", aliases=["old"])
    push(tmp_path / "two", FILES, version="2", aliases=["prod", "latest"])
    push(tmp_path / "three", {"a": "a"}, "other", version="1")
    return tmp_path / "store"


def listed(uri):
    return {info.path: info.file_size for info in artifacts.list_artifacts(uri)}


def texts(folder):
    found = {p: p.read_text() for p in Path(folder).rglob("*") if p.is_file()}
    return {p.relative_to(folder).as_posix(): text for p, text in found.items()}


@pytest.mark.parametrize("name", ["embed/minilm@prod", "embed/minilm@2", "embed/minilm"])
def test_a_version(name):
    """By alias, by version and by nothing: its files, under the name that MLflow gives its folder."""
    last = name.partition("/")[2]
    assert listed(f"mm://{name}") == {
        f"{last}/config.json": 8, f"{last}/deep": None, f"{last}/empty": 0
    }  # fmt: skip
    assert texts(artifacts.download_artifacts(f"mm://{name}")) == FILES


def test_a_model_of_one_word():
    """MLflow takes it for a host."""
    assert listed("mm://other@1") == {"a": 1}
    assert texts(artifacts.download_artifacts("mm://other@1")) == {"a": "a"}


def test_parts_of_a_version(tmp_path):
    """A file, and a folder."""
    assert artifacts.load_dict("mm://embed/minilm@prod/config.json") == {"a": 1}
    assert artifacts.load_text("mm://embed/minilm@old/config.json") == "old"
    assert artifacts.load_text("mm://embed/minilm@prod/empty") == ""
    assert listed("mm://embed/minilm@prod/deep") == {"deep/er": None, "deep/x": 1}
    assert listed("mm://embed/minilm@prod/config.json") == {}
    folder = artifacts.download_artifacts("mm://embed/minilm@prod/deep", dst_path=str(tmp_path))
    assert texts(folder) == {"er/w.bin": "w" * 1000, "x": "x"}


def test_a_destination(tmp_path):
    """Has its own copy of the version, and nothing else."""
    out = tmp_path / "out"
    folder = artifacts.download_artifacts("mm://embed/minilm@prod", dst_path=str(out))
    assert folder == str(out / "minilm@prod")
    assert texts(out) == {f"minilm@prod/{path}": text for path, text in FILES.items()}


def test_a_damaged_file_is_not_given(store, tmp_path):
    """Neither alone nor with the others."""
    (file,) = store.rglob("deep/x")
    file.chmod(0o644)
    file.write_text("y")
    for place in ("", "/deep/x"):
        with pytest.raises(mlflow_exceptions.MlflowException, match="not what was stored"):
            artifacts.download_artifacts(
                f"mm://embed/minilm@prod{place}", dst_path=str(tmp_path / "out")
            )
    assert "x" not in {path.name for path in (tmp_path / "out").rglob("*")}


@pytest.mark.parametrize(
    "name", ["none@prod", "embed/minilm@9", "embed/minilm@prod/none", "embed/none"]
)
def test_what_is_not_there(name):
    """Is told by MLflow's error, with its code."""
    for call in (artifacts.list_artifacts, artifacts.download_artifacts):
        with pytest.raises(mlflow_exceptions.MlflowException, match="there is no") as error:
            call(f"mm://{name}")
        assert error.value.error_code == "RESOURCE_DOES_NOT_EXIST"


def test_a_wrong_setting_is_told(monkeypatch):
    """With what to do."""
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", "none")
    with pytest.raises(mlflow_exceptions.MlflowException, match="no backend named") as error:
        artifacts.list_artifacts("mm://embed/minilm@prod")
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_nothing_is_written(tmp_path):
    """Whatever is tried; and why is said."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository("mm://embed/minilm@prod")
    for attempt in (
        lambda: repository.log_artifact(str(tmp_path / "one/config.json")),
        lambda: repository.log_artifacts(str(tmp_path / "one"), "x"),
        lambda: repository.delete_artifacts("config.json"),
    ):
        with pytest.raises(mlflow_exceptions.MlflowException, match="only reads"):
            attempt()


def test_an_alias_that_moves_mixes_no_versions(tmp_path):
    """One repository sees one state; the next sees the next."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    for name in ("embed/minilm@prod", "embed/minilm"):
        repository = get_artifact_repository(f"mm://{name}")
        before = {info.path for info in repository.list_artifacts()}
        version = f"after {name.partition('@')[2]}".replace(" ", "-")
        push(tmp_path / version, {"new": version}, version=version, aliases=["prod", "latest"])
        assert {info.path for info in repository.list_artifacts()} == before
        assert texts(artifacts.download_artifacts(f"mm://{name}")) == {"new": version}
