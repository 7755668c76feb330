"""The command line, ``mm``: thin commands over the manager.

``mm --help`` stays cheap: the commands stand in a table (`mm_core.cli.app`) and
each is imported only when it is run. Errors become messages and exit codes at
one seam (`mm_core.cli.seam`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mm`` with `argv` (default: the arguments of the process); return its exit code.

    A process that was interrupted ends here, without waiting for threads that are
    stuck in a read and for the interpreter to take all its modules apart.
    """
    if argv is None:
        from mm_core.cli.interrupts import end_at_once_on_signals

        end_at_once_on_signals()
    from mm_core.cli.seam import end_at_once, run, was_interrupted

    code = run(argv)
    if argv is None and was_interrupted(code):
        end_at_once(code)
    return code
