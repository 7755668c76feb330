"""The variables by which a program finds models, as the plugins say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mm_core.folders import models_cache
from mm_core.hookspecs import EnvironmentContext
from mm_core.plugins import Plugins
from mm_core.results import Environment, Got
from mm_core.sink import Sink


def make_environment(
    plugins: Plugins,
    models: Mapping[str, str],
    *,
    got: Sequence[Got],
    sink: Sink | None,
    hub: str | None,
) -> Environment:
    """What all plugins say of `models`: references, and where a program is to find each.

    That is a folder of `got`, or a URL in `sink`; it is empty where `hub` is to be asked.
    """
    context = EnvironmentContext(models=tuple(got), sink=sink, hub=hub, folder=_folder(got))
    variables: dict[str, str] = {}
    for said in reversed(plugins.hook.mm_environment(context=context)):
        variables.update(said)
    found = {name: place for name, place in models.items() if place}
    if found:
        variables["MM_MODEL"] = next(iter(found.values()))
        variables["MM_MODELS"] = json.dumps(found)
    return Environment(variables=variables, models=found)


def _folder(got: Sequence[Got]) -> Path:
    """A folder for what a program needs beside these models; the same ones have the same."""
    told = (
        (one.entry.model_id, one.entry.version, one.entry.aliases, str(one.path)) for one in got
    )
    telling = json.dumps(list(told))
    return models_cache() / ".environments" / hashlib.sha256(telling.encode()).hexdigest()[:32]
