"""One format of the weights, where a model comes in several: which files to leave out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mm_core.exceptions import NotFoundError, UsageError

if TYPE_CHECKING:
    from mm_core.schemas import RemoteFile

ALL = "all"
FORMATS = ("safetensors", "gguf", "onnx", "pytorch", "tensorflow", "flax", "openvino", "coreml")
"""What can be asked for, beside `ALL`."""

_SPLIT = r"(?:[-._]\d+-of-\d+)?"
_NAMES = {
    "safetensors": r"\.safetensors(?:\.index\.json)?$",
    "gguf": r"\.gguf$",
    "onnx": r"\.onnx(?:[._]data.*)?$|(?:^|/)onnx/",
    "pytorch": r"(?:^|/)(?:\w*pytorch_model|adapter_model|model|consolidated)[^/]*\.(?:bin|pth?)"
    r"(?:\.index\.json)?$|\.ckpt$|(?:^|/)original/.*\.pth$",
    "tensorflow": rf"(?:^|/)tf_model{_SPLIT}\.h5(?:\.index\.json)?$|(?:^|/)saved_model/",
    "flax": rf"(?:^|/)flax_model{_SPLIT}\.msgpack(?:\.index\.json)?$",
    "openvino": r"(?:^|/)openvino_\w*model[^/]*\.(?:xml|bin)$|(?:^|/)openvino/",
    "coreml": r"\.mlmodel$|\.mlpackage/|(?:^|/)coreml/",
}
_PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, pattern in _NAMES.items()}
_ORDER = ("safetensors", "gguf", "openvino", "coreml", "onnx", "tensorflow", "flax", "pytorch")
_ASIDE = frozenset({*FORMATS, "original", "saved_model", "tf"})
"""Folders that hold another form of what is beside them."""
_PROJECTOR = re.compile(r"(?:^|/)mmproj[^/]*\.gguf$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Weights:
    """A wish for one format, and of GGUF for one quantisation, such as ``Q4_K_M``.

    One that is `required` must be there; another is only preferred where it is.
    """

    format: str
    quantization: str | None = None
    required: bool = True

    def __str__(self) -> str:
        return self.format if self.quantization is None else f"{self.format}:{self.quantization}"


def parse_weights(text: str, *, required: bool = True) -> Weights:
    """``safetensors``, ``gguf:Q4_K_M``, ``all`` and the like. Raises `UsageError`."""
    format_, colon, quantization = text.strip().partition(":")
    known = format_.lower() in (*FORMATS, ALL)
    if not known or (colon and (format_.lower() != "gguf" or not quantization)):
        raise UsageError(
            f"{text!r} is no choice of weights",
            hint=f"one of {', '.join((*FORMATS, ALL))}, or such as gguf:Q4_K_M",
        )
    return Weights(format_.lower(), quantization or None, required)


def format_by_name(path: str) -> str | None:
    """The format of weights that a path is of, by its name; None for what is no weights."""
    return next((name for name in _ORDER if _PATTERNS[name].search(path)), None)


def choose(
    files: Sequence[RemoteFile], wish: Weights | None
) -> tuple[tuple[RemoteFile, ...], tuple[RemoteFile, ...]]:
    """The files to bring, and those to leave out: other formats, wherever the wished one is.

    A model may have parts of its own in folders: what one of them lacks in the wished
    format is brought as it is there. Raises `NotFoundError` where the wish is required,
    and there are weights, but none such.
    """
    if wish is None or wish.format == ALL:
        return tuple(files), ()
    formats = {file.path: format_by_name(file.path) for file in files}
    wanted = {path for path, found in formats.items() if found == wish.format}
    if wish.quantization is not None:
        wanted = {path for path in wanted if _is_quantized(path, wish.quantization)}
    there = sorted({found for found in formats.values() if found is not None})
    if not wanted:
        if wish.required and there:
            raise _none_such(wish, formats, there)
        return tuple(files), ()
    places = {_place(path) for path in wanted}
    out = {
        path
        for path, found in formats.items()
        if found is not None and path not in wanted and _place(path) in places
    }
    if wish.format == "gguf":
        out = {path for path in out if not _PROJECTOR.search(path)}
    return _those(files, out, keep=False), _those(files, out, keep=True)


def _those(files: Iterable[RemoteFile], paths: set[str], *, keep: bool) -> tuple[RemoteFile, ...]:
    return tuple(file for file in files if (file.path in paths) is keep)


def _place(path: str) -> str:
    """The folder whose weights a file is a form of."""
    folders = path.lower().split("/")[:-1]
    aside = (n for n, name in enumerate(folders) if name in _ASIDE or name.endswith(".mlpackage"))
    return "/".join(folders[: next(aside, len(folders))])


def _is_quantized(path: str, quantization: str) -> bool:
    wanted = re.escape(quantization)
    return re.search(rf"(?:^|[-._/]){wanted}(?:[-./]|$)", path, re.IGNORECASE) is not None


def _none_such(wish: Weights, formats: dict[str, str | None], there: list[str]) -> NotFoundError:
    if wish.quantization is not None and wish.format in there:
        names = sorted(path for path, found in formats.items() if found == wish.format)
        more = ", …" if len(names) > 5 else ""
        return NotFoundError(
            f"there is no {wish} among the weights: {', '.join(names[:5])}{more}",
            hint="name the quantisation as the files do, or --weights all",
        )
    return NotFoundError(
        f"there are no weights as {wish}, but as {', '.join(there)}",
        hint=f"--weights {there[0]}, or --weights all",
    )
