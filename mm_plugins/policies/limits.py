"""How large a model may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from mm_core import (
    Checked,
    Content,
    Finding,
    Plan,
    PluginConfig,
    Policy,
    PolicyContext,
    Size,
    hookimpl,
    size_in_words,
)


@hookimpl
def mm_policies() -> list[type[Policy]]:
    """Offer the policy about sizes."""
    return [LimitsPolicy]


class LimitsPolicy(Policy):
    """Sizes and the number of files; what no source states is counted once it is stored."""

    type = "limits"
    reads_content = True

    class Config(PluginConfig):
        """The settings; what is absent has no limit."""

        max_size: Size | None = Field(default=None, description="Bytes of a whole model")
        max_file_size: Size | None = Field(default=None, description="Bytes of one file")
        max_files: int | None = Field(default=None, ge=1, description="Number of files")

    def check_plan(self, plan: Plan, context: PolicyContext) -> Iterator[Finding]:
        """By the sizes that the source states."""
        count, most = len(plan.files), self.config.max_files
        if most is not None and count > most:
            message = f"it has {count:,} files, and {most:,} are the most"
            yield Finding(rule="limits.max_files", message=message, allow="raise max_files")
        yield from self._too_large([(p.file.path, p.file.size or 0) for p in plan.files])

    def check_content(self, plan: Plan, content: Content, context: PolicyContext) -> Checked:
        """By the sizes that were found, where the source did not state them all."""
        if all(planned.file.size is not None for planned in plan.files):
            return Checked()
        sizes = [(file.path, file.size) for file in content.files]
        return Checked(findings=tuple(self._too_large(sizes)))

    def _too_large(self, sizes: Sequence[tuple[str, int]]) -> Iterator[Finding]:
        total = sum(size for _, size in sizes)
        most, most_of_one = self.config.max_size, self.config.max_file_size
        if most is not None and total > most:
            message = f"it has {size_in_words(total)}, and {size_in_words(most)} is the most"
            yield Finding(rule="limits.max_size", message=message, allow="raise max_size")
        for path, size in sizes:
            if most_of_one is not None and size > most_of_one:
                yield Finding(
                    rule="limits.max_file_size",
                    path=path,
                    message=f"it has {size_in_words(size)}, and {size_in_words(most_of_one)} "
                    "is the most of one file",
                    allow="raise max_file_size, or leave the file out with --exclude",
                )
