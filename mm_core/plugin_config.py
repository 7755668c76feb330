"""The base of every plugin's settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class PluginConfig(BaseModel):
    """Settings of one source or sink, as they stand in ``mm.yaml``.

    Unknown keys are errors. The fields become part of the JSON schema that
    ``mm config schema`` prints, so give each a description. Mark what is secret
    as `pydantic.SecretStr`: it is then redacted wherever settings are shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=False)


class RootedConfig(PluginConfig):
    """The settings of a sink that has no others. ``root`` is where all keys lie."""

    root: str
