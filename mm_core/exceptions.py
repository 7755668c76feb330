"""Every error that Model Manager raises, in one tree.

The tree is grouped by what a handler does about the error, and each class has
the exit code that the command line ends with::

    MMError                          1   something went wrong
    ├── UsageError (ValueError)      2   the caller asked for something that cannot be
    │   ├── ConfigError              2   mm.yaml, the environment or a flag is wrong
    │   ├── InvalidNameError         2   a name from outside is not allowed
    │   ├── PluginError              2   a plugin is broken, missing or ambiguous
    │   └── MissingExtraError        2   an optional dependency is not installed (ImportError)
    ├── NotFoundError (LookupError)  3   no such model, revision, file, backend object
    ├── AuthError (PermissionError)  4   credentials are missing, wrong or not enough
    │   └── GatedError               4   the model's owner must grant access first
    ├── TransientError               5   a retry may help (ConnectionError)
    │   ├── OfflineError             5   the network is switched off by a setting
    │   ├── UploadLostError          5   the store has forgotten an unfinished upload
    │   └── CommitUnknownError       5   a commit may or may not have been made
    ├── IntegrityError (ValueError)  6   bytes are not what they should be
    │   ├── SourceChangedError       6   the source changed while it was being read
    │   └── SignatureError           6   a version is not signed by whom it should be
    ├── PolicyError                  7   a policy refuses the model
    ├── ConflictError                8   somebody else was first
    │   └── AlreadyExistsError       8   (FileExistsError)
    ├── StorageError (OSError)       1   the backend refused or failed for good
    │   └── NoStoreError             3   there is no such bucket, container or share
    ├── NoChangeError                1   there was nothing to do
    ├── PartialError                10   some of several failed
    └── CancelledError             130   the caller asked to stop

Messages say what happened and why; ``hint`` says what to do next. Neither ever
holds a secret: see `mm_core.redaction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class MMError(Exception):
    """The root. Catch it to catch all that Model Manager raises on purpose."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(MMError, ValueError):
    """The request itself cannot be carried out as it was put."""

    exit_code = 2
    code = "usage"


class ConfigError(UsageError):
    """A configuration file, an environment variable or a flag is wrong."""

    code = "config"


class InvalidNameError(UsageError):
    """A model id, version, alias or path from outside is not allowed."""

    code = "invalid_name"


class PluginError(UsageError):
    """A plugin is broken, not installed, or claims a name that is taken."""

    code = "plugin"


class MissingExtraError(UsageError, ImportError):
    """An optional dependency is not installed; the hint names the extra."""

    code = "missing_extra"


class NotFoundError(MMError, LookupError):
    """What was asked for does not exist."""

    exit_code = 3
    code = "not_found"


class AuthError(MMError, PermissionError):
    """Credentials are missing, wrong, expired or not sufficient."""

    exit_code = 4
    code = "auth"


class GatedError(AuthError):
    """The model is gated: its owner grants access on request."""

    code = "gated"


class TransientError(MMError, ConnectionError):
    """A fault that may pass: a cut, a time-out, a 5xx, a rate limit.

    ``retry_after`` is the number of seconds that the other side asked us to
    wait, where it said so.
    """

    exit_code = 5
    code = "temporary"

    def __init__(
        self, message: str, *, hint: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class UploadLostError(TransientError):
    """The store has forgotten an unfinished upload: the file must be sent from its start."""

    code = "upload_lost"


class OfflineError(TransientError):
    """The network is switched off (``--offline``, ``HF_HUB_OFFLINE``). Never retried."""

    code = "offline"


class CommitUnknownError(TransientError):
    """Whether a registry commit was made could not be found out in time.

    Nothing was deleted. ``operation_ids`` names the operations; doing the same
    again is safe, since an operation that is in the log already is not repeated.
    """

    code = "commit_unknown"

    def __init__(
        self, message: str, *, operation_ids: tuple[str, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.operation_ids = operation_ids


class IntegrityError(MMError, ValueError):
    """Bytes are not what their source or the registry says they are."""

    exit_code = 6
    code = "integrity"


class SourceChangedError(IntegrityError):
    """A file changed at its source while it was being read."""

    code = "source_changed"


class SignatureError(IntegrityError):
    """A signature is wrong, is of other files, or is not by anybody who is trusted."""

    code = "signature"


class PolicyError(MMError):
    """A policy refuses this model.

    `findings` are what it refuses, and what it warns of, as JSON data; a plugin that
    raises this by itself need not give any.
    """

    exit_code = 7
    code = "policy"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        findings: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class ConflictError(MMError):
    """Somebody else changed the same thing first, or is changing it now."""

    exit_code = 8
    code = "conflict"


class AlreadyExistsError(ConflictError, FileExistsError):
    """An exclusive create found the name taken."""

    code = "already_exists"


class StorageError(MMError, OSError):
    """The backend failed for good: a full disk, a read-only folder, a broken store."""

    code = "storage"


class NoStoreError(StorageError):
    """The store itself does not exist. No `NotFoundError`: nobody may take it for an empty one."""

    exit_code = 3
    code = "no_store"


class NoChangeError(MMError):
    """There was nothing to do, where the caller wants to hear of that as of an error."""

    code = "no_change"


class PartialError(MMError):
    """Some of several things failed; ``errors`` maps each to its error."""

    exit_code = 10
    code = "partial"

    def __init__(
        self, message: str, *, errors: dict[str, MMError] | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, hint=hint)
        self.errors = errors or {}


class CancelledError(MMError):
    """The caller asked to stop; what is stored so far can be taken up again."""

    exit_code = 130
    code = "cancelled"
