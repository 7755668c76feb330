"""What a policy does where nothing is stated of what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from mm_core import Finding

OnMissing = Literal["allow", "warn", "deny"]


def missing(on_missing: OnMissing, finding: Finding) -> Iterator[Finding]:
    """`finding` as a refusal, as a warning, or not at all."""
    if on_missing != "allow":
        yield replace(finding, refused=on_missing == "deny")
