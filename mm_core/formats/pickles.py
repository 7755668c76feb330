"""Pickles, read without running them: where one ends, and what it imports.

The reading errs on one side: it takes for a pickle all that an unpickler would begin
to carry out, and more. https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mm_core.formats.reader import Allowance, EndedError, Reader, TooMuchError

UNKNOWN = "?"
"""Stands for a part of a name that only running the pickle would tell."""

LONGEST_KEPT = 256
"""Of longer texts and data nothing is kept: no name is so long."""
MOST_KEPT = 64 << 20

_NAME = re.compile(r"[^\s\"'`()\[\]{}<>=,;:/\\]{1,256}")
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_NUMBERS = {"INT": b"0", "LONG": b"0L", "FLOAT": b"0"}
_ANY_TEXT = frozenset({"STRING", "UNICODE"})
_RUNS = frozenset({"REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"})


@dataclass(frozen=True, slots=True)
class Pickle:
    """What one pickle is.

    `globals` are the dotted names of all that it imports, each once. One that is not
    `whole` breaks off after it has called some of it. `end` is the first byte behind
    it. `skeleton` has the same opcodes without their long data, where it was asked for.
    """

    globals: tuple[str, ...]
    whole: bool
    end: int
    skeleton: bytes = b""


def read_pickle(reader: Reader, allowance: Allowance, *, skeleton: bool = False) -> Pickle | None:
    """The pickle that `reader` stands before; None if there is none.

    Bytes that merely could be one are none as long as they neither reach an end that
    tells, nor call anything they import before they break off. Each opcode uses up one
    of `allowance`.
    """
    machine, kept, whole = _Machine(), bytearray(), True
    try:
        while not machine.stopped:
            allowance.use()
            code = reader.take(1)
            op = _OPS.get(code)
            if op is None:
                raise _BrokenError
            raw, value = _argument(reader, op, sure=machine.has_protocol)
            machine.step(op, value)
            if skeleton and op.name != "FRAME":
                _keep(kept, code, raw)
    except (_BrokenError, EndedError):
        whole = False
    certain = machine.has_protocol or bool(machine.globals)
    if not ((certain or reader.at_end()) if whole else machine.runs):
        return None
    return Pickle(tuple(machine.globals), whole, reader.tell(), bytes(kept))


class _BrokenError(Exception):
    """No unpickler would come any further."""


@dataclass(frozen=True, slots=True)
class _Op:
    """An opcode: how its argument is read, and what it does to the stack."""

    name: str
    size: int | None
    pops: int
    to_mark: bool
    pushes: int
    is_text: bool


def _op(info: Any) -> _Op:
    before = list(info.stack_before)
    to_mark = pickletools.markobject in before
    return _Op(
        name=info.name,
        size=None if info.arg is None else info.arg.n,
        pops=before.index(pickletools.markobject) if to_mark else len(before),
        to_mark=to_mark,
        pushes=len(info.stack_after),
        is_text="STRING" in info.name or "UNICODE" in info.name,
    )


_OPS = {info.code.encode("latin-1"): _op(info) for info in pickletools.opcodes}


class _Machine:
    """An unpickler that makes nothing: its stack holds short texts, and None for all else."""

    def __init__(self) -> None:
        self.globals: dict[str, None] = {}
        self.has_protocol = False
        self.runs = False
        self.stopped = False
        self._stack: list[str | None] = []
        self._marks: list[int] = []
        self._memo: dict[int, str | None] = {}
        self._special: dict[str, Callable[[Any], None]] = {
            "PROTO": self._proto,
            "STOP": self._stop,
            "MARK": self._mark,
            "POP": self._pop,
            "DUP": self._dup,
            "GLOBAL": self._global,
            "INST": self._inst,
            "STACK_GLOBAL": self._stack_global,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._get),
            **dict.fromkeys(("EXT1", "EXT2", "EXT4"), self._extension),
        }

    def step(self, op: _Op, value: Any) -> None:
        """Do to the stack what `op` does; `_BrokenError` if it cannot."""
        special = self._special.get(op.name)
        if special is not None:
            special(value)
        else:
            self._drop(op.pops, to_mark=op.to_mark)
            self._stack += [value if op.is_text else None] * op.pushes
        if op.name in _RUNS and self.globals:
            self.runs = True

    def _drop(self, count: int, *, to_mark: bool = False) -> None:
        if to_mark:
            if not self._marks:
                raise _BrokenError
            del self._stack[self._marks.pop() :]
        if count > len(self._stack):
            raise _BrokenError
        del self._stack[len(self._stack) - count :]

    def _top(self) -> str | None:
        if not self._stack:
            raise _BrokenError
        return self._stack[-1]

    def _proto(self, _: int) -> None:
        self.has_protocol = True

    def _stop(self, _: None) -> None:
        self._drop(1)
        self.stopped = True

    def _mark(self, _: None) -> None:
        self._marks.append(len(self._stack))

    def _pop(self, _: None) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._drop(1)

    def _dup(self, _: None) -> None:
        self._stack.append(self._top())

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise _BrokenError
        self._stack.append(self._memo[index])

    def _global(self, names: tuple[str, str]) -> None:
        self._import(*names)

    def _inst(self, names: tuple[str, str]) -> None:
        self._drop(0, to_mark=True)
        self._import(*names)

    def _stack_global(self, _: None) -> None:
        name = self._top()
        self._drop(1)
        module = self._top()
        self._drop(1)
        self._import(module, name)

    def _extension(self, number: int) -> None:
        self._import("copyreg", f"extension.{number}")

    def _import(self, module: str | None, name: str | None) -> None:
        self.globals[f"{module or UNKNOWN}.{name or UNKNOWN}"] = None
        self._stack.append(None)


def _argument(reader: Reader, op: _Op, *, sure: bool) -> tuple[bytes, Any]:
    """The argument of `op` as a skeleton has it, and what it says as far as that matters.

    Unless it is `sure` that this is a pickle, a name must look like one.
    """
    if op.size is None:
        return b"", None
    if op.size >= 0:
        raw = reader.take(op.size)
        return raw, int.from_bytes(raw, "little")
    if op.size in _LENGTHS:
        return _sized(reader, op)
    if op.name in ("GLOBAL", "INST"):
        (module, first), (name, second) = _name(reader, sure), _name(reader, sure)
        return first + second, (module, name)
    return _line(reader, op)


def _sized(reader: Reader, op: _Op) -> tuple[bytes, str | None]:
    width = _LENGTHS[op.size or 0]
    head = reader.take(width)
    length = int.from_bytes(head, "little")
    if op.size == pickletools.TAKEN_FROM_ARGUMENT4 and length >= 1 << 31:
        raise _BrokenError  # a negative length
    if length > LONGEST_KEPT:
        reader.skip(length)
        return bytes(width), None
    data = reader.take(length)
    return head + data, _decoded(data) if op.is_text else None


def _line(reader: Reader, op: _Op) -> tuple[bytes, Any]:
    line, complete = reader.line(ascii_only=op.name not in _ANY_TEXT)
    if op.name not in _ANY_TEXT and not line.isascii():
        raise _BrokenError
    short = complete and len(line) <= LONGEST_KEPT
    if op.name in _NUMBERS:
        if line.lstrip()[:1] not in b"+-0123456789nNiI" or not line.strip():
            raise _BrokenError
        return (line if short else _NUMBERS[op.name]) + b"\n", None
    if op.name in ("PUT", "GET"):
        return line + b"\n", _index(line)
    if op.name == "STRING":
        if line[:1] not in (b"'", b'"'):
            raise _BrokenError
        return (line if short else b"''") + b"\n", _plain(line.rstrip()[1:-1]) if short else None
    return (line if short else b"") + b"\n", _plain(line) if short else None


def _name(reader: Reader, sure: bool) -> tuple[str | None, bytes]:
    line, complete = reader.line()
    if not complete or len(line) > LONGEST_KEPT:
        return None, UNKNOWN.encode() + b"\n"
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise _BrokenError from None
    if not sure and not (_NAME.fullmatch(text) and text.isprintable()):
        raise _BrokenError
    return text, line + b"\n"


def _index(line: bytes) -> int:
    try:
        return int(line)
    except ValueError:
        raise _BrokenError from None


def _plain(line: bytes) -> str | None:
    """The text of a line; None where escapes would have to be undone."""
    return None if b"\\" in line else _decoded(line)


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _keep(kept: bytearray, code: bytes, raw: bytes) -> None:
    kept += code
    kept += raw
    if len(kept) > MOST_KEPT:
        raise TooMuchError("too much to look through: a pickle with so many texts")
