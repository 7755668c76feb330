"""One format of the weights: what is left out, and what is not."""

from __future__ import annotations

import json

import pytest

from mm_core import (
    ConfigError,
    ConflictError,
    ModelManager,
    NotFoundError,
    UsageError,
    load_settings,
)
from mm_core.cli import main
from mm_core.schemas import RemoteFile
from mm_core.weights import choose, format_by_name, parse_weights

pytestmark = pytest.mark.unit

SMALL = ["config.json", "tokenizer.json", "README.md"]
LLAMA = [
    *SMALL,
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model.bin.index.json",
    "original/consolidated.00.pth",
    "original/params.json",
    "original/tokenizer.model",
]
BERT = [
    *SMALL,
    "model.safetensors",
    "pytorch_model.bin",
    "tf_model.h5",
    "flax_model.msgpack",
    "onnx/model.onnx",
    "onnx/model.onnx_data",
    "onnx/config.json",
    "openvino/openvino_model.xml",
    "openvino/openvino_model.bin",
    "coreml/m.mlpackage/Data/weight.bin",
    "vocab.txt",
]
GGUF = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m.Q6_K-00001-of-00002.gguf",
    "m.Q6_K-00002-of-00002.gguf",
    "mmproj-f16.gguf",
]
PIPELINE = [
    "model_index.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "safety_checker/pytorch_model.bin",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
]


def kept(paths, wish, **options):
    files = [RemoteFile(path=path, size=1) for path in paths]
    chosen, left_out = choose(files, parse_weights(wish, **options))
    assert sorted(f.path for f in (*chosen, *left_out)) == sorted(paths)
    return [file.path for file in chosen]


@pytest.mark.parametrize(
    ("paths", "wish", "gone"),
    [
        (LLAMA, "safetensors", ["original/consolidated.00.pth", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]),
        (LLAMA, "all", []),
        (LLAMA, "pytorch", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]),
        (BERT, "safetensors", ["coreml/m.mlpackage/Data/weight.bin", "flax_model.msgpack", "onnx/config.json", "onnx/model.onnx", "onnx/model.onnx_data",
                               "openvino/openvino_model.bin", "openvino/openvino_model.xml", "pytorch_model.bin", "tf_model.h5"]),
        (BERT, "ONNX", ["coreml/m.mlpackage/Data/weight.bin", "flax_model.msgpack", "model.safetensors", "openvino/openvino_model.bin",
                        "openvino/openvino_model.xml", "pytorch_model.bin", "tf_model.h5"]),
        (GGUF, "gguf", []),
        (GGUF, "gguf:q4_k_m", ["m-Q8_0.gguf", "m.Q6_K-00001-of-00002.gguf", "m.Q6_K-00002-of-00002.gguf"]),
        (GGUF, "gguf:Q6_K", ["m-Q4_K_M.gguf", "m-Q8_0.gguf"]),
        (PIPELINE, "safetensors", ["text_encoder/pytorch_model.bin", "unet/diffusion_pytorch_model.bin"]),
        (SMALL, "safetensors", []),
        (["lid.176.bin", "x.bin"], "safetensors", []),
    ],
)  # fmt: skip
def test_other_formats_are_left_out_where_the_wished_one_is(paths, wish, gone):
    """Split files, indices, folders of other forms; parts of a pipeline that lack it keep theirs."""
    assert sorted(set(paths) - set(kept(paths, wish))) == gone


@pytest.mark.parametrize(
    ("paths", "wish", "told"),
    [
        (BERT, "gguf", "there are no weights as gguf, but as coreml, flax, onnx"),
        (GGUF, "gguf:Q4_0", "there is no gguf:Q4_0 among the weights: m-Q4_K_M.gguf"),
        (GGUF, "gguf:Q4_K", "there is no gguf:Q4_K among"),
    ],
)
def test_what_is_not_there_is_told(paths, wish, told):
    """With what is; a preference takes what there is."""
    with pytest.raises(NotFoundError, match=told):
        kept(paths, wish)
    assert kept(paths, wish, required=False) == paths


@pytest.mark.parametrize("text", ["", "safetensor", "gguf:", "onnx:fp16", "all:x"])
def test_what_is_no_choice_is_told(text):
    """With the words that are."""
    with pytest.raises(UsageError) as caught:
        parse_weights(text)
    assert "gguf:Q4_K_M" in caught.value.hint
    with pytest.raises(ConfigError):
        load_settings(overrides={"defaults": {"weights": text}})


@pytest.mark.parametrize(
    "path", ["config.json", "training_args.bin", "model.py", "data.h5", "x.pth", "merges.txt"]
)
def test_what_is_no_weights_is_never_left_out(path):
    """Only names that are known to be another form of the same."""
    assert format_by_name(path) is None


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "m" / name).write_bytes(
            b'{"a": 1}' if name.endswith("json") else b"\n\0\0\0\0\0\0\0{}        " + name.encode()
        )
    return "./m"


def test_what_is_left_out_is_told_and_kept_in_mind(model, capfd):
    """In the plan, in the result, and in the entry's facts; with how to get it."""
    words = ["pull", model, "--as", "m", "--version", "1", "--to", "./store"]
    assert main([*words, "--weights", "safetensors", "-n"]) == 0
    assert (
        "left out: 1 file of pytorch, 35 B; --weights all brings them, too"
        in capfd.readouterr().out
    )
    assert main([*words, "--weights", "safetensors", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["left_out"] == [{"path": "pytorch_model.bin", "size": 35}]
    with ModelManager(backend="./store") as manager:
        shown = manager.show("m")
        assert [file.path for file in shown.manifest.files] == ["config.json", "model.safetensors"]
        assert shown.manifest.facts["left_out"] == {"weights": "safetensors", "files": 1}
        with pytest.raises(ConflictError):
            manager.pull(model, model_id="m", version="1")


def test_a_preference_of_the_settings(model):
    """It holds where a pull names none, and loses to one that does."""
    settings = load_settings(
        overrides={"defaults": {"weights": "safetensors", "backend": "./store"}}
    )
    with ModelManager(settings) as manager:
        assert len(manager.plan(model, model_id="m", version="1").files) == 2
        assert len(manager.plan(model, model_id="m", version="1", weights="all").files) == 3
        (pulls,) = manager.pull_many([model]).ends
        assert [file.path for file in pulls.pulled.left_out] == ["pytorch_model.bin"]
        assert len(manager.push(model, "pushed").left_out) == 0
