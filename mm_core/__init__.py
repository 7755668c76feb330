"""Model Manager: stream models from hubs into your own storage, with the registry beside them.

Everything here is imported on first use, so that ``import mm_core`` costs
nothing (PEP 562).
"""

from __future__ import annotations

from mm_core.version import __version__

TYPE_CHECKING = False  # not from typing: a signal must find its handler before that is imported

_EXPORTS = {
    "mm_core.manager": ("ModelManager",),
    "mm_core.using": ("get", "open", "url"),
    "mm_core.downloader": ("ModelDownloader",),
    "mm_core.registry": ("ModelRegistry",),
    "mm_core.registry.queries": ("Query",),
    "mm_core.config": ("Settings", "load_settings"),
    "mm_core.config.sections": ("Names", "Seconds", "Size"),
    "mm_core.source": ("Backends", "PassingSource", "RangeReader", "Source"),
    "mm_core.sink": ("Buffer", "NamingSink", "ResumableSink", "Sink", "Upload"),
    "mm_core.stored": ("StoredSource",),
    "mm_core.lockfile": ("LockedModel", "Lockfile", "read_lockfile", "write_lockfile"),
    "mm_core.syncing": ("Shard", "Step", "SyncStep", "Synced"),
    "mm_core.executor": ("Ended", "Executor", "Job", "heard_by", "say"),
    "mm_core.cli.base": ("cli_command", "cli_group"),
    "mm_core.service": ("ASGIApp", "Service"),
    "mm_core.main": ("make_app", "service_of"),
    "mm_core.transfer.stop": ("Stop",),
    "mm_core.content": ("Content", "ContentFile"),
    "mm_core.formats": ("FileFormat", "Inspected", "claimed_formats", "look_through"),
    "mm_core.policy": ("Checked", "Finding", "Policy", "PolicyContext"),
    "mm_core.signatures.port": (
        "Identity",
        "Signed",
        "Signer",
        "SigningKey",
        "Statement",
        "TrustedKeys",
    ),
    "mm_core.signatures.shelf": ("Bundle", "could_be_bundle"),
    "mm_core.signatures.checking": ("CheckedSignature", "SignatureState", "check_signatures"),
    "mm_core.plugin_config": ("PluginConfig",),
    "mm_core.results": ("Environment", "Got", "Shown"),
    "mm_core.lazy_config": ("LazyConfig",),
    "mm_core.plugins": ("Plugins",),
    "mm_core.hookspecs": ("MM_API", "EnvironmentContext", "PlanContext", "hookimpl"),
    "mm_core.names": ("check_alias", "check_model_id", "check_path", "check_version"),
    "mm_core.logging": ("setup_logging",),
    "mm_core.metrics": ("track_performance",),
    "mm_core.upkeep.registry_file": ("backup_and_repair_registry",),
    "mm_core.integrity": ("file_sha256", "verify_file_integrity"),
    "mm_core.sizes": ("size_in_words",),
    "mm_core.redaction": ("redact", "redact_url", "remember_secret"),
    "mm_core.schemas": (
        "content_version",
        "parse_rfc3339",
        "rfc3339",
        "Action",
        "Manifest",
        "ModelEntry",
        "ModelStatus",
        "ModelType",
        "Plan",
        "PlannedFile",
        "Pulled",
        "RemoteFile",
        "Request",
        "Snapshot",
        "StoredFile",
        "StoredObject",
        "TransferEvent",
        "UnfinishedUpload",
    ),
    "mm_core.exceptions": (
        "AlreadyExistsError",
        "AuthError",
        "CancelledError",
        "CommitUnknownError",
        "ConfigError",
        "ConflictError",
        "GatedError",
        "IntegrityError",
        "InvalidNameError",
        "MMError",
        "MissingExtraError",
        "NoStoreError",
        "NotFoundError",
        "OfflineError",
        "NoChangeError",
        "PartialError",
        "PluginError",
        "PolicyError",
        "SignatureError",
        "SourceChangedError",
        "StorageError",
        "TransientError",
        "UploadLostError",
        "UsageError",
    ),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

_SHADOWS = {"open"}
"""What ``from mm_core import *`` leaves out: it would hide a name of Python's own."""

__all__ = ["__version__", *sorted(_HOME.keys() - _SHADOWS)]  # noqa: PLE0604  # see _EXPORTS


def __getattr__(name: str) -> object:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SHADOWS])


if TYPE_CHECKING:
    from mm_core.cli.base import cli_command as cli_command
    from mm_core.cli.base import cli_group as cli_group
    from mm_core.config import Settings as Settings
    from mm_core.config import load_settings as load_settings
    from mm_core.config.sections import Names as Names
    from mm_core.config.sections import Seconds as Seconds
    from mm_core.config.sections import Size as Size
    from mm_core.content import Content as Content
    from mm_core.content import ContentFile as ContentFile
    from mm_core.downloader import ModelDownloader as ModelDownloader
    from mm_core.exceptions import AlreadyExistsError as AlreadyExistsError
    from mm_core.exceptions import AuthError as AuthError
    from mm_core.exceptions import CancelledError as CancelledError
    from mm_core.exceptions import CommitUnknownError as CommitUnknownError
    from mm_core.exceptions import ConfigError as ConfigError
    from mm_core.exceptions import ConflictError as ConflictError
    from mm_core.exceptions import GatedError as GatedError
    from mm_core.exceptions import IntegrityError as IntegrityError
    from mm_core.exceptions import InvalidNameError as InvalidNameError
    from mm_core.exceptions import MissingExtraError as MissingExtraError
    from mm_core.exceptions import MMError as MMError
    from mm_core.exceptions import NoChangeError as NoChangeError
    from mm_core.exceptions import NoStoreError as NoStoreError
    from mm_core.exceptions import NotFoundError as NotFoundError
    from mm_core.exceptions import OfflineError as OfflineError
    from mm_core.exceptions import PartialError as PartialError
    from mm_core.exceptions import PluginError as PluginError
    from mm_core.exceptions import PolicyError as PolicyError
    from mm_core.exceptions import SignatureError as SignatureError
    from mm_core.exceptions import SourceChangedError as SourceChangedError
    from mm_core.exceptions import StorageError as StorageError
    from mm_core.exceptions import TransientError as TransientError
    from mm_core.exceptions import UploadLostError as UploadLostError
    from mm_core.exceptions import UsageError as UsageError
    from mm_core.executor import Ended as Ended
    from mm_core.executor import Executor as Executor
    from mm_core.executor import Job as Job
    from mm_core.executor import heard_by as heard_by
    from mm_core.executor import say as say
    from mm_core.formats import FileFormat as FileFormat
    from mm_core.formats import Inspected as Inspected
    from mm_core.formats import claimed_formats as claimed_formats
    from mm_core.formats import look_through as look_through
    from mm_core.hookspecs import MM_API as MM_API
    from mm_core.hookspecs import EnvironmentContext as EnvironmentContext
    from mm_core.hookspecs import PlanContext as PlanContext
    from mm_core.hookspecs import hookimpl as hookimpl
    from mm_core.integrity import file_sha256 as file_sha256
    from mm_core.integrity import verify_file_integrity as verify_file_integrity
    from mm_core.lazy_config import LazyConfig as LazyConfig
    from mm_core.lockfile import LockedModel as LockedModel
    from mm_core.lockfile import Lockfile as Lockfile
    from mm_core.lockfile import read_lockfile as read_lockfile
    from mm_core.lockfile import write_lockfile as write_lockfile
    from mm_core.logging import setup_logging as setup_logging
    from mm_core.main import make_app as make_app
    from mm_core.main import service_of as service_of
    from mm_core.manager import ModelManager as ModelManager
    from mm_core.metrics import track_performance as track_performance
    from mm_core.names import check_alias as check_alias
    from mm_core.names import check_model_id as check_model_id
    from mm_core.names import check_path as check_path
    from mm_core.names import check_version as check_version
    from mm_core.plugin_config import PluginConfig as PluginConfig
    from mm_core.plugins import Plugins as Plugins
    from mm_core.policy import Checked as Checked
    from mm_core.policy import Finding as Finding
    from mm_core.policy import Policy as Policy
    from mm_core.policy import PolicyContext as PolicyContext
    from mm_core.redaction import redact as redact
    from mm_core.redaction import redact_url as redact_url
    from mm_core.redaction import remember_secret as remember_secret
    from mm_core.registry import ModelRegistry as ModelRegistry
    from mm_core.registry.queries import Query as Query
    from mm_core.results import Environment as Environment
    from mm_core.results import Got as Got
    from mm_core.results import Shown as Shown
    from mm_core.schemas import Action as Action
    from mm_core.schemas import Manifest as Manifest
    from mm_core.schemas import ModelEntry as ModelEntry
    from mm_core.schemas import ModelStatus as ModelStatus
    from mm_core.schemas import ModelType as ModelType
    from mm_core.schemas import Plan as Plan
    from mm_core.schemas import PlannedFile as PlannedFile
    from mm_core.schemas import Pulled as Pulled
    from mm_core.schemas import RemoteFile as RemoteFile
    from mm_core.schemas import Request as Request
    from mm_core.schemas import Snapshot as Snapshot
    from mm_core.schemas import StoredFile as StoredFile
    from mm_core.schemas import StoredObject as StoredObject
    from mm_core.schemas import TransferEvent as TransferEvent
    from mm_core.schemas import UnfinishedUpload as UnfinishedUpload
    from mm_core.schemas import content_version as content_version
    from mm_core.schemas import parse_rfc3339 as parse_rfc3339
    from mm_core.schemas import rfc3339 as rfc3339
    from mm_core.service import ASGIApp as ASGIApp
    from mm_core.service import Service as Service
    from mm_core.signatures.checking import CheckedSignature as CheckedSignature
    from mm_core.signatures.checking import SignatureState as SignatureState
    from mm_core.signatures.checking import check_signatures as check_signatures
    from mm_core.signatures.port import Identity as Identity
    from mm_core.signatures.port import Signed as Signed
    from mm_core.signatures.port import Signer as Signer
    from mm_core.signatures.port import SigningKey as SigningKey
    from mm_core.signatures.port import Statement as Statement
    from mm_core.signatures.port import TrustedKeys as TrustedKeys
    from mm_core.signatures.shelf import Bundle as Bundle
    from mm_core.signatures.shelf import could_be_bundle as could_be_bundle
    from mm_core.sink import Buffer as Buffer
    from mm_core.sink import NamingSink as NamingSink
    from mm_core.sink import ResumableSink as ResumableSink
    from mm_core.sink import Sink as Sink
    from mm_core.sink import Upload as Upload
    from mm_core.sizes import size_in_words as size_in_words
    from mm_core.source import Backends as Backends
    from mm_core.source import PassingSource as PassingSource
    from mm_core.source import RangeReader as RangeReader
    from mm_core.source import Source as Source
    from mm_core.stored import StoredSource as StoredSource
    from mm_core.syncing import Shard as Shard
    from mm_core.syncing import Step as Step
    from mm_core.syncing import Synced as Synced
    from mm_core.syncing import SyncStep as SyncStep
    from mm_core.transfer.stop import Stop as Stop
    from mm_core.upkeep.registry_file import (
        backup_and_repair_registry as backup_and_repair_registry,
    )
    from mm_core.using import get as get
    from mm_core.using import open as open  # noqa: A004  # mm_core.open
    from mm_core.using import url as url
