"""What the pickles of a model would import: a scan by picklescan."""

from __future__ import annotations

import importlib.metadata
import io
import logging
from collections.abc import Callable, Iterator
from datetime import timezone
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field

from mm_core import (
    Checked,
    Content,
    Finding,
    Inspected,
    MissingExtraError,
    Names,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    hookimpl,
    rfc3339,
)

_TOLD = 5
_TORCHSCRIPT = (
    "__torch__.*",
    "torch.jit._pickle.build_boollist",
    "torch.jit._pickle.build_doublelist",
    "torch.jit._pickle.build_intlist",
    "torch.jit._pickle.build_tensor_from_id",
    "torch.jit._pickle.build_tensorlist",
    "torch.jit._pickle.restore_type_tag",
)
"""What only TorchScript's own reader looks up, which knows no other Python."""
_LEAVE_OUT = "leave the file out with --exclude"
_HOW = f"if you trust it, list it in allow_globals; else {_LEAVE_OUT}"

Scanner = Callable[[bytes, str], "dict[str, bool]"]
"""``scan(pickle, name)``: each global that the pickle imports, and whether it is harmless."""


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy that scans."""
    return [ScanPolicy]


class ScanPolicy(Policy):
    """Every pickle in a model, wherever it is packed and whatever its file is called.

    Strict: of what a pickle imports, only what picklescan knows as harmless may enter, and
    what `allow_globals` names. What cannot be looked through, and a scanner that fails or
    passes a pickle over, count as a refusal. picklescan is needed only by a model that
    has a pickle.
    """

    type = "scan"
    reads_content = True

    class Config(PluginConfig):
        """The settings."""

        allow_globals: Names = Field(
            default_factory=list,
            description="Globs over dotted names that pickles may import, such as sklearn.*",
        )

    def check_content(self, plan: Plan, content: Content, context: PolicyContext) -> Checked:
        """Look through every file; the facts tell who looked, and at how much."""
        looks = content.each(lambda file: self._look(content, file.path))
        findings = [one for found, _ in looks for one in found]
        pickles = sum(count for _, count in looks)
        facts: dict[str, Any] = {
            "scanner": "picklescan" if pickles else None,
            "version": version() if pickles else None,
            "time": rfc3339(context.now.astimezone(timezone.utc)),
            "files": len(content.files),
            "pickles": pickles,
            "allowed": sorted(self.config.allow_globals),
            "ok": not findings,
        }
        return Checked(findings=tuple(findings), facts=facts)

    def _look(self, content: Content, path: str) -> tuple[list[Finding], int]:
        """What is wrong with one file, and how many pickles are in it."""
        inspected = content.inspect(path)
        pickles = sum(len(found.pickles) for found in inspected)
        scan = make_scanner() if pickles else _nothing_to_scan
        return [one for found in inspected for one in self._about(path, found, scan)], pickles

    def _about(self, path: str, found: Inspected, scan: Scanner) -> Iterator[Finding]:
        what = f"{path}!/{found.member}" if found.member else path
        if found.unread is not None:
            why = f"{what} cannot be looked through: {found.unread}"
            yield Finding(rule="scan", path=path, message=why, allow=_LEAVE_OUT)
        for pickle in found.pickles:
            harmless = scan(pickle.skeleton, what)
            passed_over = [name for name in pickle.globals if name not in harmless]
            bad = [name for name, fine in harmless.items() if not fine]
            wrong = sorted(name for name in {*bad, *passed_over} if not self._is_allowed(name))
            if wrong:
                yield Finding(
                    rule="scan.allow_globals",
                    path=path,
                    message=f"a pickle in {what} imports {_list(wrong)}",
                    allow=_HOW,
                )

    def _is_allowed(self, name: str) -> bool:
        allowed = (*_TORCHSCRIPT, *self.config.allow_globals)
        return any(fnmatchcase(name, pattern) for pattern in allowed)


def _nothing_to_scan(_: bytes, name: str) -> dict[str, bool]:
    raise AssertionError(name)


def make_scanner() -> Scanner:
    """A look at one pickle by picklescan. Raises `MissingExtraError` where it is not installed."""
    try:
        from picklescan import scanner
    except ImportError as error:
        raise MissingExtraError(
            "there are pickles to scan, and picklescan is not installed",
            hint="pip install 'model-manager[scan]', or pull other weights: --weights safetensors",
        ) from error
    logging.getLogger("picklescan").setLevel(logging.CRITICAL)  # what it finds is told by us

    def scan(pickle: bytes, name: str) -> dict[str, bool]:
        result = scanner.scan_pickle_bytes(io.BytesIO(pickle), name, multiple_pickles=False)
        innocuous = scanner.SafetyLevel.Innocuous
        return {f"{one.module}.{one.name}": one.safety == innocuous for one in result.globals}

    return scan


def version() -> str:
    """The release of picklescan."""
    return importlib.metadata.version("picklescan")


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
