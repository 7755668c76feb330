"""Models in a Kedro catalog: loaded by reference, saved only where that is asked for."""

from __future__ import annotations

import pickle

import pytest

from mm_core import ModelManager

pytestmark = pytest.mark.unit

kedro_io = pytest.importorskip("kedro.io")
TYPE = "mm_plugins.adapters.kedro.ModelDataset"


@pytest.fixture
def store(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one/config.json").write_text("{}")
    with ModelManager(backend=str(tmp_path / "store")) as manager:
        manager.push(tmp_path / "one", "embed/minilm", version="1", aliases=["prod"])
    return str(tmp_path / "store")


def dataset(**words):
    """What stands in a catalog, as Kedro makes it."""
    return kedro_io.AbstractDataset.from_config("it", {"type": TYPE, **words})


@pytest.mark.parametrize("name", ["embed/minilm", "embed/minilm@1", "embed/minilm:prod"])
def test_it_loads_a_folder(store, name):
    """By all that a reference can be."""
    found = dataset(model=name, backend=store)
    assert found.exists()
    assert (found.load() / "config.json").read_text() == "{}"


def test_the_settings_name_the_backend(store, tmp_path, monkeypatch):
    """The default one, of the environment or of the file that `config` names."""
    (tmp_path / "other.yaml").write_text("backends: {lake: {type: local, root: ./store}}")
    assert dataset(model="embed/minilm", config=str(tmp_path / "other.yaml")).exists()
    assert not dataset(model="embed/minilm", backend=str(tmp_path / "empty")).exists()
    monkeypatch.setenv("MM_DEFAULTS__BACKEND", store)
    assert dataset(model="embed/minilm").exists()


def test_what_is_not_there(store):
    """Is told with what to do."""
    found = dataset(model="embed/minilm@9", backend=store)
    assert not found.exists()
    with pytest.raises(kedro_io.DatasetError, match="no available version.*\n.*mm list"):
        found.load()


def test_nothing_is_saved_unasked(store, tmp_path):
    """And the error says how to ask."""
    with pytest.raises(kedro_io.DatasetError, match="read only.*push: true"):
        dataset(model="embed/minilm@prod", backend=store).save(tmp_path / "one")


def test_a_folder_is_pushed(store, tmp_path):
    """As a version that the alias then names; what is no folder is refused."""
    found = dataset(model="embed/minilm@prod", backend=store, push=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two/config.json").write_text('{"new": 1}')
    found.save(str(tmp_path / "two"))
    assert (found.load() / "config.json").read_text() == '{"new": 1}'
    with pytest.raises(kedro_io.DatasetError, match="is not a folder"):
        found.save(tmp_path / "none")
    with pytest.raises(kedro_io.DatasetError, match="Failed while saving"):
        found.save(7)


def test_it_says_what_it_is_and_travels(store):
    """To the processes of a ParallelRunner too."""
    found = pickle.loads(pickle.dumps(dataset(model="embed/minilm@prod", backend=store)))
    assert "embed/minilm@prod" in str(found)
    assert (found.load() / "config.json").exists()
