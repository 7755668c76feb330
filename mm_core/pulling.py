"""Many pulls, each of its own: jobs that any executor can carry out, and what became of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mm_core.config import Settings, is_address, settings_from
from mm_core.config.recipe import Recipe
from mm_core.exceptions import CancelledError, MMError
from mm_core.executor import Executor, say
from mm_core.redaction import redact, redact_url
from mm_core.schemas import Pulled, Request, RequestOptions, TransferEvent

if TYPE_CHECKING:
    from mm_core.manager import ModelManager
    from mm_core.plugins import Plugins


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """How a manager like the one that was asked is made anew, by `make`, in another process.

    `made_of` is the recipe of its settings; the settings themselves, with all that is
    in them, only where they were made by hand. `backend` is the one that is pulled into.
    The plugins are those that are installed there.
    """

    make: Callable[..., ModelManager]
    made_of: Recipe | Settings
    backend: str | None

    def open(self) -> ModelManager:
        """The manager, made now."""
        made_of = self.made_of
        settings = settings_from(made_of) if isinstance(made_of, Recipe) else made_of
        return self.make(settings, backend=self.backend, on_event=lambda e: say(asdict(e)))


@dataclass(frozen=True, kw_only=True)
class PullJob:
    """One pull, as a value.

    In this process `manager` does it. Pickled, a job leaves that behind; whoever
    calls it then opens a manager at `home`. Twice is once: what is there is not moved again.
    """

    request: Request
    to: str | None
    jobs: int | None
    wait: bool
    home: Home
    manager: ModelManager | None = field(default=None, compare=False, repr=False)

    def __call__(self, cancelled: threading.Event) -> Pulled:
        """Do it."""
        if self.manager is not None:
            return self._pull(self.manager, self.to, cancelled)
        with self.home.open() as manager:
            return self._pull(manager, None, cancelled)

    def heard(self, event: Mapping[str, Any]) -> None:
        """Something happened to the pull where it is carried out: told here as if it were here."""
        if self.manager is not None:
            self.manager.relay(TransferEvent(**event))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "manager": None}

    def _pull(self, manager: ModelManager, to: str | None, cancelled: threading.Event) -> Pulled:
        return manager.pull(
            self.request.url,
            to=to,
            jobs=self.jobs,
            wait=self.wait,
            cancelled=cancelled,
            **options_of(self.request),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PullEnd:
    """What became of one of several pulls: `pulled`, or `error`."""

    request: Request
    pulled: Pulled | None = None
    error: MMError | None = None

    @property
    def name(self) -> str:
        """The source, and the revision where one was asked for; without secrets."""
        revision = self.request.revision
        url = redact_url(self.request.url)
        return url if revision is None else f"{url}@{revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulls:
    """What became of several pulls, in the order of the requests; failures are told, not raised."""

    ends: tuple[PullEnd, ...]

    @property
    def pulled(self) -> tuple[Pulled, ...]:
        """What was pulled."""
        return tuple(end.pulled for end in self.ends if end.pulled is not None)

    @property
    def failed(self) -> dict[str, MMError]:
        """The errors, by the names of their sources."""
        return {end.name: end.error for end in self.ends if end.error is not None}


def pull_all(
    jobs: Sequence[PullJob],
    executor: Executor,
    *,
    cancelled: threading.Event,
    tell: Callable[[PullEnd], None],
    ended: Callable[[int, PullEnd], None] = lambda _, __: None,
) -> Pulls:
    """Have `executor` carry out `jobs`; `tell` hears of each as soon as it has ended.

    `ended` hears the same, and its place among `jobs`.

    Raises `CancelledError` where `cancelled` was set before all had ended.
    """
    ends: dict[int, PullEnd] = {}
    with contextlib.closing(executor.run(jobs, cancelled=cancelled)) as results:
        for one in results:
            if isinstance(one.error, CancelledError) and cancelled.is_set():
                continue
            request, error = jobs[one.index].request, _as_ours(one.error)
            ends[one.index] = PullEnd(request=request, pulled=one.result, error=error)
            tell(ends[one.index])
            ended(one.index, ends[one.index])
    if len(ends) < len(jobs):
        raise CancelledError(
            f"stopped: {len(ends)} of {len(jobs)} pulls had ended",
            hint="pull the same again: what is there already is not moved again",
        )
    return Pulls(ends=tuple(ends[index] for index in range(len(jobs))))


def make_jobs(
    manager: ModelManager,
    sources: Iterable[str | Request],
    *,
    to: str | None,
    jobs: int | None,
    wait: bool,
) -> list[PullJob]:
    """A job for each of `sources`; an address alone asks for nothing else."""
    made_of = manager.settings.recipe or manager.settings
    home = Home(make=type(manager), made_of=made_of, backend=_anywhere(to))
    requests = [one if isinstance(one, Request) else Request(url=one) for one in sources]
    return [
        PullJob(request=one, to=to, jobs=jobs, wait=wait, home=home, manager=manager)
        for one in requests
    ]


@contextlib.contextmanager
def executor_for(wanted: Executor | str | None, plugins: Plugins) -> Iterator[Executor]:
    """`wanted`, or one of that type, which is closed at the end; by default ``threads``."""
    if wanted is not None and not isinstance(wanted, str):
        yield wanted
        return
    with contextlib.closing(plugins.executor_type(wanted or "threads")()) as made:
        yield made


def _anywhere(backend: str | None) -> str | None:
    """`backend` in words that mean the same in any folder."""
    if backend is None or "://" in backend or not is_address(backend):
        return backend
    return str(Path(backend).expanduser().absolute())


def options_of(request: Request) -> RequestOptions:
    """What `ModelManager.pull` takes beside the source, as `request` has it."""
    names = RequestOptions.__annotations__
    chosen = [f.name for f in fields(request) if f.name in names]
    return cast("RequestOptions", {name: getattr(request, name) for name in chosen})


def _as_ours(error: BaseException | None) -> MMError | None:
    if error is None or isinstance(error, MMError):
        return error
    ours = MMError(redact(f"{type(error).__name__}: {error}"))
    ours.__cause__ = error
    return ours
