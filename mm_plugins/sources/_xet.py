"""Reading through hf_xet: many connections in Rust, bytes in order, no disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mm_core import Buffer, TransientError, redact, remember_secret


class XetReader:
    """The files of one repository at one commit, from its content store.

    `grant` is what the hub's token route answered; hf_xet asks `refresh_url`
    for a new one with `headers` when it runs out.
    """

    def __init__(self, grant: Mapping[str, Any], refresh_url: str, headers: dict[str, str]) -> None:
        import hf_xet

        remember_secret(str(grant["accessToken"]))
        self._group = hf_xet.XetSession().new_download_stream_group(
            endpoint=grant["casUrl"],
            token=grant["accessToken"],
            token_expiry_unix_secs=int(grant["exp"]),
            token_refresh_url=refresh_url,
            token_refresh_headers=headers,
        )

    def read(self, file_hash: str, size: int, start: int, end: int) -> Iterator[Buffer]:
        """The bytes ``[start, end)`` of the file with that Xet hash.

        Raises `TransientError`: hf_xet has tried again by itself, so that what
        comes through is rarely final, and never tells whether it is.
        """
        import hf_xet

        stream = None
        try:
            info = hf_xet.XetFileInfo(file_hash, size)
            stream = self._group.download_stream(info, start=start, end=end)
            yield from stream
        except GeneratorExit:
            if stream is not None:
                stream.cancel()
            raise
        except Exception as error:
            raise TransientError(
                f"the Xet store failed: {redact(str(error))}",
                hint="try again, or set `xet: false` for this source to read by HTTP",
            ) from error
