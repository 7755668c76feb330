"""A source: it says what exists, and reads it. All else is the engine's business."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator

from pydantic import Field

from mm_core import (
    Buffer,
    ModelType,
    NotFoundError,
    PluginConfig,
    RemoteFile,
    Request,
    Snapshot,
    Source,
    SourceChangedError,
    UsageError,
)

BLOCK = 1 << 20


class HelloSource(Source):
    """``hello://NAME`` is a small model that greets NAME. It is made up on the spot."""

    type = "hello"
    schemes = ("hello",)
    needs_network = False

    class Config(PluginConfig):
        """The settings of the source, as they stand in mm.yaml."""

        greeting: str = Field("Hello", description="What the model says before the name")
        times: int = Field(1, ge=1, description="How often the weights say it")

    def snapshot(self, request: Request) -> Snapshot:
        """The three files of the model, as far as the request's patterns let them through."""
        name = _name(request.url)
        contents = self._contents(name)
        revision = hashlib.sha256(b"\0".join(contents.values())).hexdigest()[:40]
        if request.revision not in (None, "latest", revision):
            raise NotFoundError(
                f"{request.url} has no revision {request.revision!r}",
                hint="leave the revision out; there is only one",
            )
        files = tuple(
            RemoteFile(
                path=path,
                size=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                extra={"name": name},
            )
            for path, data in contents.items()
            if request.selects(path)
        )
        return Snapshot(
            source=f"hello://{name}",
            revision=revision,
            files=files,
            model_id=f"hello/{name}",
            model_type=ModelType.TEXT_GENERATION,
            license="apache-2.0",
        )

    def read(self, file: RemoteFile, start: int = 0, end: int | None = None) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of `file`, a block at a time."""
        data = self._contents(file.extra["name"]).get(file.path)
        if data is None or hashlib.sha256(data).hexdigest() != file.sha256:
            raise SourceChangedError(f"{file.path} is not what it was")
        data = data[start:end]
        for offset in range(0, len(data), BLOCK):
            yield data[offset : offset + BLOCK]

    def _contents(self, name: str) -> dict[str, bytes]:
        greeting = f"{self.config.greeting}, {name}!\n"
        config = {"model_type": "hello", "name": name}
        return {
            "config.json": json.dumps(config, sort_keys=True).encode(),
            "greeting.txt": greeting.encode(),
            "model.safetensors": _safetensors(greeting.encode() * self.config.times),
        }


def _name(url: str) -> str:
    name = url.partition("://")[2].strip("/")
    if not name or "/" in name:
        raise UsageError(f"{url!r} names nobody", hint="write hello://NAME, such as hello://world")
    if name == "nobody":
        raise NotFoundError("there is nobody to greet", hint="try hello://world")
    return name


def _safetensors(data: bytes) -> bytes:
    """A real safetensors file with one tensor of bytes."""
    tensor = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    header = json.dumps({"greeting": tensor}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data
