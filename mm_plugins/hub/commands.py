"""``mm serve``, and ``mm token`` for who may use it."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import click

from mm_core import MissingExtraError, UsageError, cli_command, cli_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_core import ASGIApp
    from mm_plugins.hub.config import HubConfig
    from mm_plugins.hub.tokens import Token, TokenBook

_SERVE = """
mm serve
mm serve --backend lake --port 8000
mm serve --host 0.0.0.0 --tls-certificate hub.pem --tls-key hub.key
"""
_TOKENS = """
mm token create ci --scope read
mm token create alice --scope write --model 'team-a/*' --expires 90d
mm token list
mm token revoke 0a1b2c3d4e5f
"""
_CREATE = """
mm token create ci
mm token create release --scope admin --model 'org/*' --expires 30d --json
"""
_LIST = """
mm token list
mm token list --json
"""
_REVOKE = """
mm token revoke 0a1b2c3d4e5f
"""


@cli_command("serve", examples=_SERVE)
@click.option("--host", metavar="ADDRESS", help="Listen here; 127.0.0.1 if not given.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="N", help="8080 if not given.")
@click.option("--tls-certificate", metavar="FILE", help="Speak TLS, with this certificate.")
@click.option("--tls-key", metavar="FILE", help="The key of that certificate.")
@click.option("--anonymous-read/--tokens-only", default=None, help="Let anybody read, or nobody.")
@click.pass_obj
def serve(state: Any, /, **flags: Any) -> None:
    """Serve a backend in the protocol of the Hugging Face Hub.

    Clients need no change: HF_ENDPOINT names the address that is printed. All other
    settings are in the section `serve` of mm.yaml, which SIGHUP reads again.
    """
    try:
        from mm_plugins.hub.pulls import Pulls
        from mm_plugins.hub.server import Reloadable, listen, run, url_of
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the hub needs {error.name}", hint="pip install 'model-manager[serve]'"
        ) from error
    from mm_core import ModelManager, service_of, setup_logging

    given = {name: value for name, value in flags.items() if value is not None}
    state.overrides |= {f"serve.{name}": value for name, value in given.items()}
    configs: list[HubConfig] = []
    pulls = Pulls()  # they go on, and are told of, when the settings are read again

    def make() -> tuple[ASGIApp, Callable[[], None]]:
        manager = ModelManager(state.settings(), backend=state.backend)
        service: Any = service_of(manager)
        configs.append(service.config)
        service.pulls = pulls
        return service.app(manager), lambda: pulls.when_free(manager, manager.close)

    app = Reloadable(make)
    config = configs[0]
    setup_logging("WARNING" if state.quiet else "DEBUG" if state.verbose > 1 else "INFO")
    for chatty in ("uvicorn", "httpx", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    sock = listen(config)
    url = url_of(config, sock)
    state.emit(
        {"url": url, "backend": config.backend or state.backend},
        human=[f"Serving at {url}", f"Use it: HF_ENDPOINT={url} hf download ORG/NAME"],
        quiet=[url],
    )
    sys.stdout.flush()
    run(app, config, sock, stopping=pulls.close)


@cli_group("token", examples=_TOKENS)
def token() -> None:
    """Say who may use the server, by tokens that are kept beside the registry."""


@token.command("create", examples=_CREATE)
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["read", "write", "admin"]),
    default="read",
    help="What it is for; each includes those before it. read if not given.",
)
@click.option(
    "--model", "models", multiple=True, metavar="GLOB", help="Only models that match; may repeat."
)
@click.option("--expires", metavar="AGE", help="When it ends, such as 90d. Never if not given.")
@click.pass_obj
def create(
    state: Any, /, name: str, scope: str, models: tuple[str, ...], expires: str | None
) -> None:
    """Make a token called NAME, and print it this once."""
    end = None if expires is None else _moment(expires)
    with state.registry() as registry:
        text, made = _book(registry).create(name, scope=scope, models=models or ("*",), expires=end)
    state.emit(
        {"token": {**made.to_json(), "text": text}},
        human=[text, f"It is shown this once. Revoke it: mm token revoke {made.id}"],
        quiet=[text],
    )


@token.command("list", examples=_LIST)
@click.pass_obj
def list_(state: Any, /) -> None:
    """List the tokens. What they are is not kept, only a hash of it."""
    with state.registry() as registry:
        found = sorted(_book(registry).all(), key=lambda one: one.created)
    rows = [one.to_json() for one in found]
    state.emit(
        {"tokens": rows},
        human=[_line(one) for one in found] or ["there are no tokens: `mm token create NAME`"],
        quiet=[one.id for one in found],
        rows=("token", rows),
    )


@token.command("revoke", examples=_REVOKE)
@click.argument("token_id")
@click.pass_obj
def revoke(state: Any, /, token_id: str) -> None:
    """Make a token worthless. Servers notice within `serve.token_refresh` seconds."""
    with state.registry() as registry:
        _book(registry).revoke(token_id)
    state.emit({"revoked": token_id}, human=[f"revoked {token_id}"])


def _book(registry: Any) -> TokenBook:
    from mm_plugins.hub.tokens import TokenBook

    return TokenBook(registry.sink)


def _line(one: Token) -> str:
    end = "" if one.expires is None else f", until {one.expires:%Y-%m-%d %H:%M}"
    return f"{one.id}  {one.scope:5}  {', '.join(one.models)}  {one.name}{end}"


def _moment(text: str) -> datetime:
    from pydantic import TypeAdapter, ValidationError

    from mm_core import Seconds

    try:
        seconds = TypeAdapter(Seconds).validate_python(text)
        return datetime.now(timezone.utc) + timedelta(seconds=seconds)
    except (ValidationError, OverflowError):
        raise UsageError(
            f"--expires {text!r} is not an age", hint="such as 90d, 12h or 30m"
        ) from None
