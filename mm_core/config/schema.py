"""What may stand in ``mm.yaml``: its JSON schema, a starter file, and a check of all of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mm_core.config.origins import dotted
from mm_core.config.problems import did_you_mean
from mm_core.config.sections import DEFAULT_SERVICE, Document
from mm_core.config.settings import Settings, build_config, is_address
from mm_core.exceptions import ConfigError, MMError

if TYPE_CHECKING:
    from mm_core.plugins import Plugins
    from mm_core.sink import Sink
    from mm_core.source import Source

_REFERENCE = {"type": "string", "pattern": r"\$\{.+\}", "description": "A ${VARIABLE}"}

_NAMES = {"pattern": r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"}

_STARTER = """\
# yaml-language-server: $schema=./mm.schema.json
# The schema is made by `mm config schema > mm.schema.json`; check this file with
# `mm config validate`. Secrets do not belong here: write ${VARIABLE} or ${file:PATH}.
version: 1

defaults:
  backend: BACKEND
  jobs: 8                  # files at once, 1 to 64
  # connections: 8         # to a source at once, over all files of a model
  # memory: 128MiB         # all buffers of one pull together
  # limit_rate: 50MiB      # bytes a second that a process reads; no limit without it
  # retries: 5             # tries again without progress
  # claim_timeout: 60s     # without a sign of life, until another takes over a pull
  # commit_timeout: 60s    # to keep trying to reach the registry
  # weights: safetensors   # where a model has several formats of them; all without it
  # writer: ci/nightly     # who commits, in mm history; by default user@host/pid
  # offline: false         # true: ask no source over the network

backends:
  # Where models are kept. A backend is used by its name: mm pull … --to NAME
ENTRY
  # lake: {type: s3, root: s3://my-bucket/models, options: {profile: ml}}
  # dr:   {type: gcs, root: gs://my-bucket/models, options: {project: my-project}}
  # For s3 and gcs `transfer` says who sends the bytes: auto (without it), direct, or
  # fsspec, which is s3fs or gcsfs.
  # old:  {type: s3, root: s3://my-bucket/old, transfer: fsspec}

sources:
  # Where models come from. The Hub needs a token only for private and gated models.
  hf: {type: huggingface, token: "${HF_TOKEN:-}"}
  # vendor:
  #   type: url
  #   allow_hosts: [dl.vendor.example]
  #   headers: {Authorization: "Bearer ${VENDOR_KEY}"}

# policies:
#   # What may enter. Without a set named `default` there is one: files whose content is
#   # not what their name says, and pickles that are not known to be harmless, are refused.
#   ours:                  # any name; `mm policy list` tells which rules hold
#     licenses: {allow: [apache-2.0, mit]}
#     limits: {max_size: 200GiB}
#     # backends: [BACKEND]   # only there; everywhere without it

# retention:
#   # `mm gc` leaves what is younger; with --retention it keeps so many versions of a model.
#   grace: 24h
#   keep_last: 3

# signing:
#   # Signatures over models: `mm sign` makes them, `mm verify --signature` looks at them.
#   key_file: ./release.pem
#   public_keys: [./release.pub]

# registry:
#   remember: true         # refuse a registry that went back, say to an older backup
"""


def starter(*, backend: str = "local", type: str = "local", root: str = "./models") -> str:
    """The text of a first ``mm.yaml``, with one backend."""
    import json

    entry = f"  {backend}: {{type: {type}, root: {json.dumps(root)}}}"
    return _STARTER.replace("BACKEND", backend).replace("ENTRY", entry)


def validate(settings: Settings, plugins: Plugins) -> list[str]:
    """All that is wrong with the settings of plugins and with names, a line each.

    What `load_settings` refuses by itself (unknown keys, wrong types) never
    gets as far as here. Nothing is opened and nobody is asked.
    """
    return [
        *_plugin_problems(settings, plugins),
        *_policy_problems(settings, plugins),
        *_name_problems(settings),
    ]


def json_schema(plugins: Plugins) -> dict[str, Any]:
    """The JSON schema (2020-12) of ``mm.yaml``, with the settings of all installed plugins."""
    schema = Document.model_json_schema(ref_template="#/$defs/{model}")
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    definitions.pop("Entry", None)
    offered: dict[str, Mapping[str, type[Sink | Source]]] = {
        "backends": plugins.sinks(),
        "sources": plugins.sources(),
    }
    for section, types in offered.items():
        kinds = []
        for name, found in sorted(types.items()):
            key = f"{section}.{name}"
            definitions[key] = _entry_schema(found.Config.model_json_schema(), name, key)
            definitions.update(_inner_definitions(definitions[key]))
            kinds.append({"$ref": f"#/$defs/{key}"})
        schema["properties"][section]["additionalProperties"] = {"anyOf": kinds} if kinds else {}
        schema["properties"][section].pop("patternProperties", None)
        schema["properties"][section]["propertyNames"] = _NAMES
    _add_policies(schema, plugins)
    _add_services(schema, plugins)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_open_to_references(schema),
        "title": "mm.yaml",
    }


def _plugin_problems(settings: Settings, plugins: Plugins) -> Iterator[str]:
    for find, entries in (
        (plugins.sink_type, {f"backends.{name}": e for name, e in settings.backends.items()}),
        (plugins.source_type, {f"sources.{name}": e for name, e in settings.sources.items()}),
        (plugins.service_type, {"serve": settings.serve} if settings.serve.values else {}),
    ):
        for where, entry in entries.items():
            try:
                build_config(find(entry.type).Config, entry.values, where, settings)
            except MMError as error:
                at = settings.origin(f"{where}.type")
                told = str(error).startswith(str(settings.origin(where)).partition(":")[0])
                yield from (str(error) if told else f"{at}: {where}: {error}").split("\n")


def _policy_problems(settings: Settings, plugins: Plugins) -> Iterator[str]:
    for name, values in settings.policies.items():
        for type_ in [key for key in values if key != "backends"]:
            path = ("policies", name, type_)
            try:
                build_config(plugins.policy_type(type_).Config, values[type_], path, settings)
            except ConfigError as error:
                yield from str(error).split("\n")
            except MMError as error:
                yield f"{settings.origin_near(path)}: {dotted(path)}: {error}"


def _name_problems(settings: Settings) -> Iterator[str]:
    known = list(settings.backends)
    for model_id, wanted in settings.models.items():
        for name in wanted.get("to", ()):
            if name not in known and not is_address(name):
                at = settings.origin_near(("models", model_id, "to"))
                yield (
                    f"{at}: models.{model_id}.to: there is no backend named {name!r}"
                    f"{did_you_mean(name, known)}"
                )


def _add_policies(schema: dict[str, Any], plugins: Plugins) -> None:
    """Let a set of policies hold the kinds that are installed, with their settings."""
    definitions = schema["$defs"]
    sets = definitions["PolicySet"]
    for name, found in sorted(plugins.policies().items()):
        key = f"policies.{name}"
        definitions[key] = _own_schema(found.Config.model_json_schema(), key)
        definitions.update(_inner_definitions(definitions[key]))
        sets["properties"][name] = {"anyOf": [{"$ref": f"#/$defs/{key}"}, {"type": "null"}]}
    sets["additionalProperties"] = False
    section = schema["properties"]["policies"]
    section.pop("patternProperties", None)
    section |= {"additionalProperties": {"$ref": "#/$defs/PolicySet"}, "propertyNames": _NAMES}


def _add_services(schema: dict[str, Any], plugins: Plugins) -> None:
    """Let the section ``serve`` hold the settings of the services that are installed."""
    definitions = schema["$defs"]
    definitions.pop("ServeSection", None)
    kinds = []
    for name, found in sorted(plugins.services().items()):
        key = f"serve.{name}"
        definitions[key] = _entry_schema(found.Config.model_json_schema(), name, key)
        if name == DEFAULT_SERVICE:  # what no type at all means
            definitions[key]["required"].remove("type")
        definitions.update(_inner_definitions(definitions[key]))
        kinds.append({"$ref": f"#/$defs/{key}"})
    schema["properties"]["serve"] = {"anyOf": kinds} if kinds else {}


def _entry_schema(config: dict[str, Any], type_: str, key: str) -> dict[str, Any]:
    """The schema of a plugin's ``Config`` with its ``type`` before it."""
    config = _own_schema(config, key)
    properties = {"type": {"const": type_}, **config.get("properties", {})}
    required = ["type", *config.get("required", [])]
    return {**config, "properties": properties, "required": required}


def _own_schema(config: dict[str, Any], key: str) -> dict[str, Any]:
    """The schema of a plugin's ``Config``, whose inner names are no others'."""
    definitions = {f"{key}.{n}": d for n, d in config.pop("$defs", {}).items()}
    return {**_renamed({**config, "$defs": definitions}, key), "title": key}


def _inner_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema.pop("$defs", {})
    return found


def _renamed(node: Any, key: str) -> Any:
    if isinstance(node, Mapping):
        return {
            k: f"#/$defs/{key}.{v.rpartition('/')[2]}"
            if k == "$ref" and isinstance(v, str)
            else _renamed(v, key)
            for k, v in node.items()
        }
    return [_renamed(item, key) for item in node] if isinstance(node, list) else node


def _open_to_references(node: Any) -> Any:
    """A number or a truth value may also be given as ``${VARIABLE}``."""
    if isinstance(node, list):
        return [_open_to_references(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if node.get("type") in ("integer", "number", "boolean"):
        described = {k: node[k] for k in ("title", "description", "default") if k in node}
        bare = {k: v for k, v in node.items() if k not in described}
        return {**described, "anyOf": [bare, _REFERENCE]}
    return {key: _open_to_references(value) for key, value in node.items()}
