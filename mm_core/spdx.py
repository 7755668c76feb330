"""Licences as SPDX spells them: what hubs and model cards write, brought to that form."""

from __future__ import annotations

import re

_IDS = (
    "AFL-3.0 AGPL-3.0 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 APSL-2.0 Artistic-2.0 "
    "BlueOak-1.0.0 BSD-2-Clause BSD-3-Clause BSD-3-Clause-Clear BSL-1.0 BUSL-1.1 C-UDA-1.0 "
    "CC-BY-2.0 CC-BY-2.5 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 "
    "CC-BY-NC-ND-3.0 CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 "
    "CC-BY-ND-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC0-1.0 CDLA-Permissive-1.0 CDLA-Permissive-2.0 "
    "CDLA-Sharing-1.0 CECILL-2.1 ECL-2.0 EPL-1.0 EPL-2.0 etalab-2.0 EUPL-1.1 EUPL-1.2 GFDL-1.3 "
    "GPL-2.0 GPL-2.0-only GPL-2.0-or-later GPL-3.0 GPL-3.0-only GPL-3.0-or-later ISC LGPL-2.1 "
    "LGPL-2.1-only LGPL-2.1-or-later LGPL-3.0 LGPL-3.0-only LGPL-3.0-or-later LPPL-1.3c MIT "
    "MIT-0 MPL-2.0 MS-PL NCSA OFL-1.1 ODbL-1.0 ODC-By-1.0 OSL-3.0 PDDL-1.0 PostgreSQL "
    "Unlicense UPL-1.0 WTFPL Zlib ZPL-2.1"
)
"""The identifiers that models have. One that is not here is told by its name."""

_CANONICAL = {id_.lower(): id_ for id_ in _IDS.split()} | {
    "c-uda": "C-UDA-1.0",
    "odbl": "ODbL-1.0",
    "odc-by": "ODC-By-1.0",
    "pddl": "PDDL-1.0",
}

_WORDS = re.compile(r"[()]|[^\s()]+")
_JOINTS = {"AND", "OR", "WITH"}


def license_id(text: str) -> str | None:
    """The SPDX identifier that `text` means, in its own spelling; None if it is none we know."""
    return _CANONICAL.get(text.strip().lower())


def license_expression(text: str) -> str | None:
    """`text` as an SPDX expression such as ``MIT OR Apache-2.0``; None if it is none.

    Every licence in it must be one that we know; exceptions after WITH stay as they are.
    """
    words = _WORDS.findall(text)
    if len(words) < 3 or not _JOINTS & {word.upper() for word in words}:
        return None
    spelt: list[str] = []
    for word in words:
        joint, after_with = word.upper() in _JOINTS, spelt[-1:] == ["WITH"]
        own = word if word in "()" or after_with else license_id(word.rstrip("+"))
        found = word.upper() if joint else own
        if found is None:
            return None
        spelt.append(f"{found}+" if word.endswith("+") else found)
    return " ".join(spelt).replace("( ", "(").replace(" )", ")") if _is_sound(spelt) else None


def _is_sound(words: list[str]) -> bool:
    """Whether licences and joints take turns, within parentheses that close."""
    depth, wants_licence = 0, True
    for word in words:
        if word == "(":
            depth, sound = depth + 1, wants_licence
        elif word == ")":
            depth, sound = depth - 1, not wants_licence and depth > 0
        elif word in _JOINTS:
            sound, wants_licence = not wants_licence, True
        else:
            sound, wants_licence = wants_licence, False
        if not sound:
            return False
    return depth == 0 and not wants_licence
