"""The plugin: a module with hooks. It must be cheap to import."""

from __future__ import annotations

from mm_core import Sink, Source, hookimpl
from mm_hello.sink import HelloSink
from mm_hello.source import HelloSource


@hookimpl
def mm_sources() -> list[type[Source]]:
    """Offer ``hello://NAME`` as a place where models come from."""
    return [HelloSource]


@hookimpl
def mm_sinks() -> list[type[Sink]]:
    """Offer ``hello:///path/to/store.sqlite`` as a place where models are kept."""
    return [HelloSink]
