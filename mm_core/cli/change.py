"""Commands that change or check what is registered: rm, verify."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.asking import refuse_nothing
from mm_core.cli.base import command
from mm_core.cli.progress import make_teller
from mm_core.cli.sign import signature_lines
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import IntegrityError, SignatureError, UsageError

if TYPE_CHECKING:
    from mm_core.signatures.making import SignedVersion
    from mm_core.verification import VerifyReport

_REFERENCE = "ID[@VERSION|:ALIAS]"
_FILE = click.Path(path_type=Path)


@command(
    "rm",
    examples="""
    mm rm my-org/my-model@3
    mm rm my-org/my-model@3 --yes
    """,
)
@click.argument("reference", metavar=_REFERENCE)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_state
def rm(state: State, /, reference: str, yes: bool) -> None:
    """Remove a version from the registry.

    It is marked DELETED and no longer offered. Its files stay until mm gc finds
    that this is longer ago than the grace; until then, pulling it again is cheap.
    """
    with state.manager() as manager:
        entry = manager.registry().resolve(reference)
        exact = f"{entry.model_id}@{entry.version}"
        if not yes:
            _confirm(state, f"Remove {exact} ({output.size(entry.size_bytes)})?")
        removed = manager.remove(exact)
    state.emit(
        {"entry": removed.to_json()},
        human=[f"{exact} is {removed.status.value}; its files stay until mm gc"],
        quiet=[exact],
    )


@command(
    "verify",
    examples="""
    mm verify
    mm verify my-org/my-model:prod
    mm verify --no-deep --json
    mm verify --repair
    mm verify my-org/my-model:prod --signature --public-key release.pub
    mm verify --signature --no-deep
    """,
)
@click.argument("reference", metavar="[ID[@VERSION|:ALIAS]]", required=False)
@click.option("--deep/--no-deep", default=True, help="Read every byte, or compare sizes alone.")
@click.option("--repair", is_flag=True, help="Bring what is missing or wrong again.")
@click.option("--signature", is_flag=True, help="Each must be signed by somebody who is trusted.")
@click.option(
    "--public-key", "public_keys", type=_FILE, multiple=True, metavar="FILE", help="Trust this key."
)
@click.option(
    "--certificate-chain",
    "certificate_roots",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Trust what this root stands for.",
)
@pass_state
def verify(
    state: State,
    /,
    *,
    reference: str | None,
    deep: bool,
    repair: bool,
    signature: bool,
    public_keys: tuple[Path, ...],
    certificate_roots: tuple[Path, ...],
) -> None:
    """Read models back and check every byte against the registry. All models by default.

    With --repair, what is wrong is set aside, and comes again from equal bytes in the
    backend or from where the version came from. With --signature, the registry's file
    list is held against the signatures over it, too; whose count may stand in mm.yaml.
    """
    if (public_keys or certificate_roots) and not signature:
        raise UsageError("keys and roots are for signatures", hint="add --signature")
    with state.manager() as manager:
        signed = (
            manager.verify_signatures(
                reference, public_keys=public_keys, certificate_roots=certificate_roots
            )
            if signature
            else ()
        )
        state.when_interrupted = output.say_go_on if repair else None
        report = manager.verify(reference, deep=deep, repair=repair, tell=make_teller(state))
        if not report.checked:
            refuse_nothing(manager.registry())
    _tell(state, report, signed, repair=repair)


def _tell(
    state: State, report: VerifyReport, signed: tuple[SignedVersion, ...], *, repair: bool
) -> None:
    """Print what was found; what is wrong is the exit code."""
    unsigned = [version for version in signed if not version.ok]
    document = report.to_json()
    if signed:
        signatures = [version.to_json() for version in signed]
        document |= {"ok": report.ok and not unsigned, "signatures": signatures}
    mended = [f"{m.model_id}@{m.version} {m.path}: mended" for m in report.mended]
    bad = [f"{b.model_id}@{b.version} {b.path}: {b.reason}" for b in report.bad]
    lines = [*map(output.clean, (*mended, *bad)), *signature_lines(signed)]
    if report.ok and not unsigned:
        whole = output.counted(report.checked, "file is as it", "files are as they") + " should be"
        state.emit(document, human=[*lines, whole], quiet=())
        return
    state.so_far = document
    if not state.wants_json:
        for line in lines:
            click.echo(line)
    if report.ok:
        raise _not_signed(unsigned, len(signed))
    raise IntegrityError(
        f"{len(report.bad)} of {report.checked} files are not what the registry says",
        hint="`mm gc` takes what belongs to no version; the rest has to be pulled or pushed again"
        if repair
        else "`mm verify --repair` brings what is missing or wrong again",
    )


def _not_signed(unsigned: list[SignedVersion], count: int) -> SignatureError:
    if count == 1:
        (one,) = unsigned
        message = f"{one.entry.model_id}@{one.entry.version}: {one.reason}"
    else:
        message = f"{len(unsigned)} of {count} versions have no signature that counts"
    return SignatureError(
        message,
        hint="`mm sign` signs a version; whose signatures count is named by --public-key, "
        "--certificate-chain, or `signing` in mm.yaml",
    )


def _confirm(state: State, question: str) -> None:
    if state.wants_json or not sys.stdin.isatty():
        raise UsageError("removing asks first, and there is no terminal", hint="add --yes")
    if not click.confirm(question, err=True):
        raise click.Abort
