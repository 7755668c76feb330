"""For tests of plugins, and of programs: the suites, real servers on loopback, and faults.

``from mm_core.testing import SinkTests`` and subclass it; `fixtures` has the servers.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False

_SUITES = {
    "CommandTests": "commands",
    "ExecutorTests": "executors",
    "ExampleModel": "policies",
    "PolicyTests": "policies",
    "RegistryTests": "registry",
    "ResumableSinkTests": "sinks",
    "SinkTests": "sinks",
    "SourceTests": "sources",
}

__all__ = [
    "CommandTests",
    "ExampleModel",
    "ExecutorTests",
    "PolicyTests",
    "RegistryTests",
    "ResumableSinkTests",
    "SinkTests",
    "SourceTests",
]

if "pytest" in sys.modules:  # so that a failed assertion of a suite shows its values
    for _module in sorted(set(_SUITES.values())):
        sys.modules["pytest"].register_assert_rewrite(f"{__name__}.{_module}")


def __getattr__(name: str) -> object:
    module = _SUITES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from mm_core.testing.commands import CommandTests as CommandTests
    from mm_core.testing.executors import ExecutorTests as ExecutorTests
    from mm_core.testing.policies import ExampleModel as ExampleModel
    from mm_core.testing.policies import PolicyTests as PolicyTests
    from mm_core.testing.registry import RegistryTests as RegistryTests
    from mm_core.testing.sinks import ResumableSinkTests as ResumableSinkTests
    from mm_core.testing.sinks import SinkTests as SinkTests
    from mm_core.testing.sources import SourceTests as SourceTests
