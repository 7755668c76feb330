"""Running the hub: listening, stopping without cutting anybody off, starting over on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn

from mm_core import ASGIApp, ConfigError
from mm_plugins.hub.config import HubConfig
from mm_plugins.hub.zerocopy import Protocol, ZeroCopy

logger = logging.getLogger(__name__)

Make = Callable[[], "tuple[ASGIApp, Callable[[], None]]"]
"""Makes an application by the settings as they are now, and what closes it."""


class _Generation:
    """An application, how many requests it answers, and whether another came after it."""

    def __init__(self, app: ASGIApp, close: Callable[[], None]) -> None:
        self.app = app
        self.close = close
        self.answering = 0
        self.is_former = False

    def close_if_over(self) -> None:
        """Close it once it is a former one and nobody is answered by it."""
        if self.is_former and not self.answering:
            self.close()


class Reloadable:
    """An application that is exchanged while it runs: who is being answered stays with the old one.

    Where `make` fails, the former application stays.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._current = _Generation(*make())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer with the application of the moment."""
        current = self._current
        current.answering += 1
        try:
            await current.app(scope, receive, send)
        finally:
            current.answering -= 1
            current.close_if_over()

    async def exchange(self) -> None:
        """Make the application anew."""
        try:
            made = _Generation(*await asyncio.to_thread(self._make))
        except Exception as error:  # noqa: BLE001  # a slip in mm.yaml must not stop a server
            logger.error("mm.yaml was not taken: %s", error)  # noqa: TRY400
            return
        former, self._current = self._current, made
        logger.warning("mm.yaml was read again")
        former.is_former = True
        former.close_if_over()

    def close(self) -> None:
        """Close what is current."""
        self._current.close()


class Server(uvicorn.Server):
    """uvicorn, with the port that it got told to whoever started it, and SIGHUP."""

    def __init__(
        self, config: uvicorn.Config, app: Reloadable, stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._reloadable = app
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End what would not end by itself; then let the rest end."""
        self._stopping()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM, which then count as an end like any; read again on SIGHUP."""
        loop = asyncio.get_running_loop()

        exchanges: set[asyncio.Task[None]] = set()

        def begin_exchange() -> None:
            task = loop.create_task(self._reloadable.exchange())
            exchanges.add(task)  # the loop itself holds tasks but weakly
            task.add_done_callback(exchanges.discard)

        def again(_signum: int, _frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(begin_exchange)

        ours: dict[int, Any] = {signal.SIGINT: self.handle_exit, signal.SIGTERM: self.handle_exit}
        if hasattr(signal, "SIGHUP"):
            ours[signal.SIGHUP] = again
        former = {number: signal.signal(number, handler) for number, handler in ours.items()}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


def listen(config: HubConfig) -> socket.socket:
    """The socket that is listened on. `ConfigError` where that cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # Named, since asyncio sends small answers at once (TCP_NODELAY) on such sockets alone.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {error}",
            hint="choose another with --host and --port; --port 0 takes any that is free",
        ) from error
    sock.listen(2048)
    sock.set_inheritable(True)
    return sock


def url_of(config: HubConfig, sock: socket.socket) -> str:
    """What the hub is called by: what the settings say, else where it listens."""
    if config.url:
        return config.url
    host, port = sock.getsockname()[:2]
    scheme = "https" if config.tls_certificate else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def run(
    app: Reloadable,
    config: HubConfig,
    sock: socket.socket,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Answer until a signal; then let the running answers end, for `drain` seconds at most.

    `stopping` is called as soon as the signal comes.
    """
    settings = uvicorn.Config(
        ZeroCopy(app),
        http=Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=bool(config.trusted_proxies),
        forwarded_allow_ips=config.trusted_proxies or None,
        ssl_certfile=config.tls_certificate,
        ssl_keyfile=config.tls_key,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(1, round(config.drain)),
    )
    server = Server(settings, app, stopping)
    try:
        server.run(sockets=[sock])
    finally:
        app.close()
