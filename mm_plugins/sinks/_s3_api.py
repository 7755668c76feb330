"""S3's calls through s3fs, one request at a time, with errors that say what S3 said.

s3fs finds credentials (profiles, SSO, roles) and keeps the connections. Its file
operations guess, cache and repeat; its errors lose the status. So only its bare
calls are used, and the status in botocore's answer is the judge. What botocore would
send, and by whose credentials, can be asked too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mm_core import AuthError, MissingExtraError, MMError, remember_secret
from mm_plugins.sinks import _s3_session
from mm_plugins.sinks._patience import ATTEMPTS, persist
from mm_plugins.sinks._s3_errors import code_of, is_expired, translated
from mm_plugins.sinks._s3_session import ClientFacts, Identity, Prepared


class S3Api:
    """One bucket. `make` builds the s3fs file system when it is first needed."""

    def __init__(self, make: Callable[[], Any], bucket: str) -> None:
        self._make = make
        self._bucket = bucket
        self._looking = threading.Lock()  # held over requests for credentials
        self._made: Any = None

    def ask(self, method: str, name: str, *, attempts: int = ATTEMPTS, **arguments: Any) -> Any:
        """Call a method of the botocore client on the bucket, about `name`.

        Asked again after a fault that may pass, unless `attempts` is 1, for what
        must not be done twice.
        """
        return persist(partial(self._once, method, name, arguments), attempts=attempts)

    def blocks(self, answer: Mapping[str, Any], size: int, name: str) -> Iterator[bytes]:
        """The body of an answer in blocks of up to `size` bytes; `TransientError` for a cut."""
        body = answer["Body"]
        try:
            while True:
                with translated(name):
                    block: bytes = self._run(body.read, size)
                if not block:
                    return
                yield block
        finally:
            self._run(_close, body)

    def prepared(self, method: str, name: str, **arguments: Any) -> Prepared:
        """What botocore would send for a call about the object `Key`. It is not sent."""
        with translated(name):
            prepare = _s3_session.prepare
            made: Prepared = self._run(prepare, self._fs, method, self._bucket, arguments)
            return made

    def facts(self, name: str) -> ClientFacts:
        """What the client was told about its connections."""
        with translated(name):
            found: ClientFacts = self._run(_s3_session.facts, self._fs, self._bucket)
            return found

    def identity(self, name: str) -> Identity:
        """Who asks just now: temporary credentials are renewed by their session in time."""
        with translated(name):
            return self._identity_of(self._fs)

    def renew(self, used: Any, name: str) -> bool:
        """Look for other credentials than the file system `used` found; whether there are some.

        For sessions that are over: somebody may have signed in again meanwhile.
        """
        with self._looking:
            if self._made is not used:
                return True
            try:
                with translated(name):
                    fresh = self._make()
                    if self._identity_of(fresh)[1] == self._identity_of(used)[1]:
                        return False
            except MMError:
                return False  # the refusal is the error to tell
            self._made = fresh
        return True

    def close(self) -> None:
        """Let the connections go; the next call opens new ones. Waits for nobody."""
        self._made = None

    def _once(self, method: str, name: str, arguments: Mapping[str, Any]) -> Any:
        used = self._fs
        try:
            return self._call(used, method, name, arguments)
        except AuthError as error:
            if not is_expired(code_of(error)) or not self.renew(used, name):
                raise
        return self._call(self._fs, method, name, arguments)

    def _call(self, system: Any, method: str, name: str, arguments: Mapping[str, Any]) -> Any:
        with translated(name):
            call = system._call_s3  # noqa: SLF001  # call_s3 is this, hidden by a wrapper
            return self._run_in(system, call, method, Bucket=self._bucket, **arguments)

    def _identity_of(self, system: Any) -> Identity:
        found = self._run_in(system, _s3_session.credentials, system)
        if found is not None:
            for secret in filter(None, (found.secret, found.token)):
                remember_secret(secret)
        return Identity(system, found)

    def _run(self, action: Callable[..., Any], *arguments: Any) -> Any:
        return self._run_in(self._fs, action, *arguments)

    @staticmethod
    def _run_in(system: Any, action: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        from fsspec.asyn import sync

        return sync(system.loop, action, *arguments, **named)

    @property
    def _fs(self) -> Any:
        made = self._made
        if made is None:
            with self._looking:
                made = self._made
                if made is None:
                    made = self._made = self._make()
        return made


def make_file_system(
    *, client_kwargs: Mapping[str, Any], config_kwargs: Mapping[str, Any], **options: Any
) -> Any:
    """An s3fs file system of its own, which caches nothing and repeats nothing."""
    try:
        import s3fs
    except ImportError as error:
        raise MissingExtraError(
            "S3 needs s3fs, which is not installed", hint="pip install 'model-manager[s3]'"
        ) from error
    config = {
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 64,
        **config_kwargs,
    }
    system = s3fs.S3FileSystem(
        client_kwargs=dict(client_kwargs),
        config_kwargs=config,
        use_listings_cache=False,
        skip_instance_cache=True,
        **options,
    )
    system.retries = 1
    return system


async def _close(body: Any) -> None:
    body.close()
