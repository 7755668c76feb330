"""The command line, ``mm``: thin commands over the manager.

``mm --help`` stays cheap: the commands stand in a table (`mm_core.cli.app`) and
each is imported only when it is run. Errors become messages and exit codes at
one seam (`mm_core.cli.seam`).
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mm`` with `argv` (default: the arguments of the process); return its exit code."""
    from mm_core.cli.seam import run

    return run(argv)
