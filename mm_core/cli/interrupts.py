"""Signals that arrive while ``mm`` is still being imported.

Nothing has begun by then, so that the process can end on the spot. This module
imports next to nothing: it runs before all that takes time.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from types import FrameType
else:
    try:
        import _signal as signal  # the same, without the enums, which take longer than all here
    except ImportError:
        import signal

INTERRUPTED = 130
TERMINATED = 143

_ENDS: dict[int, tuple[str, int]] = {
    signal.SIGINT: ("Interrupted.", INTERRUPTED),
    signal.SIGTERM: ("Terminated.", TERMINATED),
}
_USUAL = (signal.SIG_DFL, signal.default_int_handler)


def end_at_once_on_signals() -> None:
    """End the process at SIGINT and SIGTERM, with one line, until others take the signals over.

    A signal that is ignored, or is somebody else's, stays so.
    """
    for number in _ENDS:
        if signal.getsignal(number) in _USUAL:
            try:
                signal.signal(number, _end)
            except ValueError:  # not in the main thread: then signals are somebody else's
                return


def is_ours(number: int) -> bool:
    """Whether the signal `number` would end the process by `end_at_once_on_signals`."""
    return signal.getsignal(number) is _end


def _end(number: int, _frame: FrameType | None) -> None:
    word, code = _ENDS[number]
    words = " ".join(sys.argv[1:])
    if "--json" in words or "json" in words.partition("--format")[2][:6]:
        kind = '"kind": "error", ' if "jsonl" in words else ""
        error = f'{{"code": "cancelled", "message": "{word}", "hint": null}}'
        text, stream = f'{{"schema_version": 1, {kind}"error": {error}}}\n', 1
    else:
        text, stream = f"{word}\n", 2
    try:
        os.write(stream, text.encode())
    finally:
        os._exit(code)
