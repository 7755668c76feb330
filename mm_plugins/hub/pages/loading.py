"""How to load a version, in lines that can be copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from mm_core import ModelEntry

_MOST_PARTS = 2  # of an id, for the Hub's clients


class Way(NamedTuple):
    """A program, and what to give it."""

    name: str
    text: str


def ways(entry: ModelEntry, *, origin: str, root: str, needs_token: bool) -> Iterator[Way]:
    """The ways to load a version from the hub at `origin`, or from the backend at `root`."""
    model_id, version = entry.model_id, entry.version
    head = f"export HF_ENDPOINT={origin}\n"
    if needs_token:
        head += "export HF_TOKEN=mm_…   # a token that fits\n"
    if model_id.count("/") < _MOST_PARTS:
        yield Way(
            "transformers",
            f"{head}python - <<'END'\n"
            "from transformers import AutoModel\n"
            f'model = AutoModel.from_pretrained("{model_id}", revision="{version}")\n'
            "END",
        )
        yield Way("vLLM", f"{head}vllm serve {model_id} --revision {version}")
        yield Way("hf", f"{head}hf download {model_id} --revision {version}")
    backend = f" --backend {root}" if "://" in root else ""
    yield Way("mm get", f"mm{backend} get {model_id}@{version}")
    if root.startswith("s3://"):
        yield Way("boto3", _boto3(entry, root))


def _boto3(entry: ModelEntry, root: str) -> str:
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    folder = f"{prefix.strip('/')}/models/{entry.model_id}/{entry.version}/".lstrip("/")
    return (
        "import os, boto3\n"
        f'bucket, folder = boto3.resource("s3").Bucket("{bucket}"), "{folder}"\n'
        "for one in bucket.objects.filter(Prefix=folder):\n"
        '    path = os.path.join("model", one.key.removeprefix(folder))\n'
        "    os.makedirs(os.path.dirname(path), exist_ok=True)\n"
        "    bucket.download_file(one.key, path)"
    )
