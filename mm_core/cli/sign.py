"""The command that signs a version, and what `mm verify` says of signatures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mm_core.cli import output
from mm_core.cli.base import command
from mm_core.cli.state import State, pass_state
from mm_core.exceptions import ConfigError, UsageError

if TYPE_CHECKING:
    from mm_core.signatures.making import NewSignature, SignedVersion

_FILE = click.Path(path_type=Path)


@command(
    "sign",
    examples="""
    mm sign my-org/my-model:prod --key release.pem
    mm sign my-org/my-model:prod --key release.pem --password-env KEY_PASSWORD
    mm sign my-org/my-model@3 --key leaf.pem --certificate leaf.crt --chain intermediate.crt
    mm sign my-org/my-model@3 --bundle model.sig
    """,
)
@click.argument("reference", metavar="ID[@VERSION|:ALIAS]")
@click.option("--key", type=_FILE, metavar="FILE", help="The private key, in PEM form.")
@click.option("--password-env", metavar="VAR", help="The variable that holds the key's password.")
@click.option("--certificate", type=_FILE, metavar="FILE", help="The certificate of that key.")
@click.option("--chain", type=_FILE, multiple=True, metavar="FILE", help="Those up to its root.")
@click.option("--bundle", type=_FILE, metavar="FILE", help="Keep one that was made elsewhere.")
@pass_state
def sign(
    state: State,
    /,
    *,
    reference: str,
    key: Path | None,
    password_env: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    bundle: Path | None,
) -> None:
    """Sign a version, as the OpenSSF specifies it for models.

    The signature covers every file by the sha256 that the registry has, so no byte is
    read again. It is kept beside the version, goes along with copies, and `mm get -o`
    puts it beside the files, for `model_signing verify`. Keys may stand in mm.yaml
    under `signing`.
    """
    from mm_core.signatures.keys import password_from

    if bundle is not None and (key or certificate or chain or password_env):
        raise UsageError("--bundle brings a signature that was made, and keys make another")
    with state.manager() as manager:
        if bundle is not None:
            made = manager.attach_signature(reference, _read(bundle))
        else:
            made = manager.sign(
                reference,
                key=key,
                password=password_from(password_env),
                certificate=certificate,
                chain=chain,
            )
    state.emit(made.to_json(), human=_lines(made), quiet=[made.key])


def signature_lines(versions: tuple[SignedVersion, ...]) -> Iterator[str]:
    """What is to be said of the signatures of each version, a line each."""
    for version in versions:
        name = f"{version.entry.model_id}@{version.entry.version}"
        if version.reason is not None:
            yield output.clean(f"{name}: {version.reason}")
        for one in version.signatures:
            if one.state.value != "valid":
                continue
            yield output.clean(f"{name}: signed by {one.signer}")
            if one.uncovered:
                yield output.clean(f"{name}: not covered: {', '.join(one.uncovered)}")


def _lines(made: NewSignature) -> Iterator[str]:
    name = f"{made.entry.model_id}@{output.short_version(made.entry.version)}"
    word = "is signed" if made.made else "was signed already"
    yield output.clean(f"{name} {word} by {made.signer}")
    yield output.clean(f"  {made.key}")


def _read(path: Path) -> bytes:
    from mm_core.signatures.shelf import LARGEST

    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > LARGEST:
        raise UsageError(f"{path} is too large to be a signature")
    return data
