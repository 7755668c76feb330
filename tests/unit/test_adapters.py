"""Adapters where the tool that they are for is not installed: the error names what to install."""

from __future__ import annotations

import importlib
import sys

import pytest

from mm_core import MissingExtraError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("module", "needed", "install"),
    [
        ("kedro", "kedro.io", "pip install 'kedro>=0.19.7'"),
        ("mlflow", "mlflow.entities", "pip install 'mlflow-skinny>=2.16'"),
    ],
)
def test_what_is_missing_is_named(module, needed, install, monkeypatch):
    """As an ImportError, which is what those who look for plugins expect."""
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.delitem(sys.modules, f"mm_plugins.adapters.{module}", raising=False)
    with pytest.raises(MissingExtraError) as error:
        importlib.import_module(f"mm_plugins.adapters.{module}")
    assert error.value.hint == install
    assert isinstance(error.value, ImportError)
