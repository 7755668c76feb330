"""Which formats files may have, by their content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from mm_core import (
    Checked,
    Content,
    ContentFile,
    FileFormat,
    Finding,
    Inspected,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    claimed_formats,
    hookimpl,
)

_VAGUE = frozenset({FileFormat.JSON, FileFormat.TEXT, FileFormat.OTHER})
_FORMATS = frozenset(one.value for one in FileFormat)
_HOW_ABOUT_LIES = "set mismatch to warn or allow, or leave the file out with --exclude"
_LEAVE_OUT = "leave the file out with --exclude"


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about formats."""
    return [FormatsPolicy]


def _format_or_glob(text: str) -> str:
    if text not in _FORMATS and not set(text) & set("*?[./"):
        known = ", ".join(sorted(_FORMATS))
        raise ValueError(f"{text!r} is neither a format nor a pattern of paths ({known})")
    return text


FormatOrGlob = Annotated[str, AfterValidator(_format_or_glob)]


class FormatsPolicy(Policy):
    """What a file is, by its content, and what is packed in it.

    A file may be several things at once, such as a zip behind a pickle: then each must be
    allowed. What is packed in an archive counts like a file of its own, except that
    ``json``, ``text`` and ``other`` in one are let in: all that has no format is that.
    A name that states another format than the content has is a lie (`mismatch`): who
    loads ``model.safetensors`` does not expect a pickle.
    """

    type = "formats"
    reads_content = True

    class Config(PluginConfig):
        """The settings; without any, only names that lie are refused."""

        allow: list[FormatOrGlob] | None = Field(
            default=None,
            description="Only these: formats by content, or globs over paths; all if absent",
        )
        deny: list[FormatOrGlob] = Field(
            default_factory=list, description="Never these, even if allowed"
        )
        mismatch: Literal["deny", "warn", "allow"] = Field(
            default="deny", description="What becomes of a name that states another format"
        )

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """By names: what states a format that may not enter need not be fetched."""
        for planned in plan.files:
            path = planned.file.path
            stated = claimed_formats(path)
            if self._rule_against(path, stated[:1]) and (
                not stated or all(self._rule_against(path, [one]) for one in stated)
            ):
                yield self._refused(path, path, stated[:1])

    def check_content(self, plan: Plan, content: Content, context: PolicyContext) -> Checked:
        """By content, through all archives."""
        found = content.each(lambda file: self._of(content, file))
        return Checked(findings=tuple(one for several in found for one in several))

    def _of(self, content: Content, file: ContentFile) -> list[Finding]:
        inspected = content.inspect(file.path)
        if not self._is_particular:
            inspected = inspected[:1]  # only the name of the file itself is in question
        return [one for found in inspected for one in self._about(file.path, found)]

    @property
    def _is_particular(self) -> bool:
        """Whether it matters what is packed in a file."""
        return bool({*self.config.deny, *(self.config.allow or ())} & _FORMATS)

    def _about(self, path: str, found: Inspected) -> Iterator[Finding]:
        formats = [one for one in found.formats if not (found.member and one in _VAGUE)]
        where = f"{path}!/{found.member}" if found.member else path
        if found.unread is not None and self._is_particular:
            message = f"{where} cannot be looked through: {found.unread}"
            yield Finding(rule="formats", path=path, message=message, allow=_LEAVE_OUT)
        elif (formats or not found.member) and self._rule_against(path, formats):
            yield self._refused(path, where, formats)
        stated = claimed_formats(path)
        if not found.member and _lies(stated, found.formats) and self.config.mismatch != "allow":
            yield Finding(
                rule="formats.mismatch",
                path=path,
                message=f"its name says {_words(stated)}, its content is {_words(found.formats)}",
                allow=_HOW_ABOUT_LIES,
                refused=self.config.mismatch == "deny",
            )

    def _rule_against(self, path: str, formats: Sequence[FileFormat]) -> str | None:
        """The setting that keeps such a file out; None for one that may enter.

        Without `formats` only its path is known: what may be allowed by content is let pass.
        """
        if any(_fits(path, formats, one) for one in self.config.deny):
            return "formats.deny"
        allow = self.config.allow
        if allow is None or any(_matches(path, one) for one in allow):
            return None
        by_content = _FORMATS & set(allow)
        fine = {one.value for one in formats} <= by_content if formats else bool(by_content)
        return None if fine else "formats.allow"

    def _refused(self, path: str, where: str, formats: Sequence[FileFormat]) -> Finding:
        rule = self._rule_against(path, formats) or "formats"
        denied = rule == "formats.deny"
        what = "" if where == path else f"{where} "
        kind = f"is {_words(formats)}, which is " if formats else "is "
        return Finding(
            rule=rule,
            path=path,
            message=f"{what}{kind}{'denied' if denied else 'not among what is allowed'}",
            allow=f"{'take it off' if denied else 'add it to'} that list, or {_LEAVE_OUT}",
        )


def _matches(path: str, pattern: str) -> bool:
    return pattern not in _FORMATS and fnmatchcase(path, pattern)


def _fits(path: str, formats: Sequence[FileFormat], one: str) -> bool:
    return any(format_.value == one for format_ in formats) or _matches(path, one)


def _lies(stated: Sequence[FileFormat], formats: Sequence[FileFormat]) -> bool:
    """Whether content of these formats is surely not what its name states."""
    return bool(stated) and not set(stated) & set(formats) and bool(set(formats) - _VAGUE)


def _words(formats: Sequence[FileFormat]) -> str:
    return " and ".join(one.value for one in formats)
