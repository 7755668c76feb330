"""How clients of the Hub find models: a cache of the Hub that leads to folders, or another hub."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from mm_core import EnvironmentContext, Got, StorageError

logger = logging.getLogger(__name__)


def variables(context: EnvironmentContext) -> Mapping[str, str]:
    """``HF_ENDPOINT`` for a hub; else ``HF_HUB_CACHE`` with the models, and nothing from afar.

    Not ``HF_HOME``, which would hide the user's token and data sets as well. Source:
    https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables
    """
    if context.hub is not None:
        return {"HF_ENDPOINT": context.hub.rstrip("/")}
    if not context.models:
        return {}
    cache = context.folder / "hub"
    try:
        for got in reversed(context.models):  # the first of two versions of a model is its `main`
            _place(cache, got)
    except OSError as error:
        raise StorageError(
            f"{cache} cannot be written: {error.strerror or error}",
            hint="set MM_CACHE to a folder that can be written",
        ) from error
    return {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}


def _place(cache: Path, got: Got) -> None:
    entry = got.entry
    if entry.model_id.count("/") > 1 or "--" in entry.model_id:  # as the Hub refuses it, too
        logger.warning("%s is no name on the Hub: it is found by its folder alone", entry.model_id)
        return
    repo = cache / f"models--{entry.model_id.replace('/', '--')}"
    snapshot = repo / "snapshots" / entry.version
    snapshot.parent.mkdir(parents=True, exist_ok=True)
    if not snapshot.is_symlink() or snapshot.readlink() != got.path:
        with _at_once(snapshot) as staged:
            staged.symlink_to(got.path, target_is_directory=True)
    for name in {entry.version, *entry.aliases, "main"}:
        ref = repo / "refs" / name
        ref.parent.mkdir(parents=True, exist_ok=True)
        with _at_once(ref) as staged:
            staged.write_text(entry.version)


@contextlib.contextmanager
def _at_once(path: Path) -> Iterator[Path]:
    staged = path.with_name(f".{uuid.uuid4().hex}")
    yield staged
    staged.replace(path)
