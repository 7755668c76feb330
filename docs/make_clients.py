"""Make a table of docs/serve-clients.md of what clients said.

``python docs/make_clients.py reads|uploads FILE…``, where each FILE is what
``tests/integration/hub_client.py``, or ``hub_uploads.py``, printed in an environment
with one client.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("serve-clients.md")
BEGIN, END = "<!-- made by docs/make_clients.py: {} -->\n", "<!-- end -->\n"


def table(told: list[dict[str, object]]) -> str:
    """A row for each check, a column for each client."""
    lines = ["| | " + " | ".join(f"{one['version']}" for one in told) + " |\n"]
    lines.append("|---|" + "---|" * len(told) + "\n")
    for name in told[0]["results"]:  # type: ignore[attr-defined]
        cells = [one["results"][name] for one in told]  # type: ignore[index]
        shown = [cell if cell in ("ok", "not installed") else "**fails**" for cell in cells]
        lines.append(f"| `{name}` | " + " | ".join(shown) + " |\n")
    return "".join(lines)


def main() -> None:
    """Put the table into the page."""
    begin = BEGIN.format(sys.argv[1])
    told = [json.loads(Path(name).read_text()) for name in sys.argv[2:]]
    before, _, rest = PAGE.read_text().partition(begin)
    after = rest.partition(END)[2]
    PAGE.write_text(before + begin + table(told) + END + after)


if __name__ == "__main__":
    main()
