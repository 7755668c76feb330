"""``python -m mm_core`` is ``mm``."""

from __future__ import annotations

import sys

from mm_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
