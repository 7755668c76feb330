"""What is pulled, from where to where, and by which ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paired.inputs import MIB
from paired.ways import (
    HF_AWS,
    HF_AWS_EACH,
    LIMIT,
    MM,
    MM_EMBEDDED,
    RCLONE,
    TO_LOCAL,
    TO_S3,
    XET_PULL,
    XET_READ,
    Way,
)

NULL, WEED, LOCAL, NOTHING = "nullstore", "seaweedfs", "local", "nothing"

CPU = (
    "The CPU: origin, store and client share it over loopback, where no wire is slower than a copy."
)
DISK = (
    "The CPU, and how fast the kernel takes new pages of a file: compare the dd control. "
    "Where fsync is part of a way (the second limit; mm pull), the disk."
)
REQUESTS = "Requests, not bytes: what a client does for each file, in CPU time and round trips."


@dataclass(frozen=True)
class Shape:
    """A line: its round trip, what a connection carries, and how many fit on it."""

    rtt_ms: float = 50.0
    mbit: float = 200.0
    connections: int = 8
    to_store: bool = True

    def seconds(self, size: int) -> float:
        """How long the full line needs for `size` bytes."""
        return size * 8 / (self.mbit * 1e6 * self.connections)


@dataclass(frozen=True)
class Scenario:
    """One table of the report."""

    name: str
    title: str
    sizes: tuple[int, ...]
    ways: tuple[Way, ...]
    limited_by: str
    store: str = NULL
    tls: bool = False
    by_ranges: bool = False
    sparse: bool = False
    checked: bool = True
    shape: Shape | None = None
    most_rounds: int = 1000

    @property
    def jobs(self) -> int | None:
        """How many connections the ways are told to use; None for their own choice."""
        return self.shape.connections if self.shape else None

    def unchecked(self) -> Scenario:
        """The same without its round of checks."""
        return replace(self, checked=False)

    def only(self, names: list[str]) -> Scenario:
        """The same with the limit, and those ways that have one of `names` in theirs."""
        chosen = [way for way in self.ways[1:] if any(name in way.name for name in names)]
        return replace(self, ways=(self.ways[0], *chosen))


def scenarios(mib: int) -> list[Scenario]:
    """All of them, with large files of `mib` MiB; 256 is the size that figures are quoted for."""
    eight, one = (mib * MIB,) * 8, (8 * mib * MIB,)
    small = (20_000,) * max(16, 2000 * mib // 256)
    gigabyte, twenty = 10**9 * mib // 256, 20 * 10**9 * mib // 256
    files = f"8 files of {mib} MiB"
    whole = f"1 file of {8 * mib} MiB"
    return [
        Scenario(
            "start",
            "1 file of 1 kB, hub to S3: what a call costs before and after the bytes",
            (1000,),
            (LIMIT, MM, MM_EMBEDDED, HF_AWS, RCLONE),
            "The CPU: interpreters and imports, and a few requests.",
        ),
        Scenario("large", f"{files}, hub to S3", eight, (*TO_S3, HF_AWS_EACH), CPU),
        Scenario("one", f"{whole}, hub to S3", one, TO_S3, CPU, by_ranges=True),
        Scenario("large-local", f"{files}, hub to local disk", eight, TO_LOCAL, DISK, store=LOCAL),
        Scenario(
            "one-local",
            f"{whole}, hub to local disk",
            one,
            TO_LOCAL,
            DISK,
            store=LOCAL,
            by_ranges=True,
        ),
        Scenario("small", f"{len(small):,} files of 20 kB, hub to S3", small, TO_S3, REQUESTS),
        Scenario(
            "small-local",
            f"{len(small):,} files of 20 kB, hub to local disk",
            small,
            TO_LOCAL,
            f"{REQUESTS} With fsync, the disk's latency.",
            store=LOCAL,
        ),
        Scenario(
            "seaweed",
            f"{files}, hub to SeaweedFS",
            eight,
            (LIMIT, MM, MM_EMBEDDED, HF_AWS, RCLONE),
            "SeaweedFS: its CPU time, and the disk that it writes to.",
            store=WEED,
        ),
        Scenario(
            "tls",
            f"{files}, hub to S3, both over TLS",
            eight,
            (LIMIT, MM, MM_EMBEDDED, HF_AWS, RCLONE),
            f"{CPU} Each byte is encrypted and decrypted twice there.",
            tls=True,
        ),
        Scenario(
            "xet",
            f"1 file of {4 * mib} MiB by Xet, from a content store in a folder to nothing",
            (4 * mib * MIB,),
            (XET_READ, XET_PULL),
            "The CPU: hf_xet's own work, and a sha256.",
            store=NOTHING,
            checked=False,
        ),
        *_wan(eight, one, files, whole),
        *_memory(gigabyte, twenty),
    ]


def _wan(eight: tuple[int, ...], one: tuple[int, ...], files: str, whole: str) -> list[Scenario]:
    made = []
    for to_store in (True, False):
        shape = Shape(to_store=to_store)
        name = "wan" if to_store else "wan-hub"
        where = "hub and store" if to_store else "the hub"
        line = f"{shape.rtt_ms:g} ms and {shape.mbit:g} Mb/s a connection to {where}"
        limited_by = (
            f"The line: {shape.connections} connections' worth, "
            f"{shape.connections * shape.mbit:g} Mb/s, is all that it carries."
        )
        for sizes, title in ((one, whole), (eight, files)):
            made.append(
                Scenario(
                    f"{name}-{'one' if sizes is one else 'large'}",
                    f"{title}, hub to S3, {line}",
                    sizes,
                    (LIMIT, MM, MM_EMBEDDED, HF_AWS, RCLONE),
                    limited_by,
                    by_ranges=True,
                    shape=shape,
                    checked=False,
                    most_rounds=3,
                )
            )
    return made


def _memory(gigabyte: int, twenty: int) -> list[Scenario]:
    def scenario(name: str, sizes: tuple[int, ...], text: str) -> Scenario:
        return Scenario(
            f"memory-{name}",
            f"{text}, hub to S3: what memory it takes (sparse at the origin)",
            sizes,
            (LIMIT, MM),
            "Look at the peaks. They must not grow with the size.",
            by_ranges=len(sizes) == 1,
            sparse=True,
            checked=False,
            most_rounds=1,
        )

    return [
        scenario("1gb", (gigabyte // 8,) * 8, "8 files, 1 GB in all"),
        scenario("20gb", (twenty // 8,) * 8, "8 files, 20 GB in all"),
        scenario("20gb-one", (twenty,), "1 file of 20 GB"),
    ]
