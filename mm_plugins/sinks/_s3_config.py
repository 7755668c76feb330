"""The settings of an S3 backend."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr

from mm_core import PluginConfig
from mm_plugins.sinks._s3_direct import Transfer


class S3Options(PluginConfig):
    """How S3 is reached. Without any, the AWS SDK's own chain and AWS_ENDPOINT_URL hold."""

    endpoint_url: str | None = Field(default=None, description="For stores other than AWS")
    profile: str | None = Field(default=None, description="A profile of the AWS configuration")
    region: str | None = Field(default=None, description="The bucket's region")
    anon: bool = Field(default=False, description="Ask without credentials")
    key: SecretStr | None = Field(default=None, description="An access key id")
    secret: SecretStr | None = Field(default=None, description="Its secret")
    token: SecretStr | None = Field(default=None, description="A session token")
    client_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for the botocore client"
    )
    config_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for botocore.config.Config"
    )
    s3_additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, repr=False, description="More for each write, such as encryption"
    )


class Config(PluginConfig):
    """The settings of an S3 backend."""

    root: str = Field(description="s3://bucket/prefix")
    options: S3Options = Field(default_factory=S3Options, description="How S3 is reached")
    transfer: Transfer = Field(
        default="auto", description="Who sends the bytes: auto, direct or fsspec (s3fs)"
    )


def environment(config: Config) -> dict[str, str]:
    """The settings as variables, for programs that read the same store; never a secret.

    Sources: https://docs.aws.amazon.com/sdkref/latest/guide/settings-reference.html and
    https://github.com/run-ai/runai-model-streamer/blob/master/docs/src/env-vars.md
    """
    options = config.options
    named_there = options.client_kwargs.get("endpoint_url") or options.endpoint_url
    variables = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    endpoint = _without_user(next(filter(None, (named_there, *variables)), None))
    named: dict[str, str | None] = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_PROFILE": options.profile,
        "AWS_REGION": options.region,
        "AWS_DEFAULT_REGION": options.region,
        "RUNAI_STREAMER_S3_ENDPOINT": endpoint,
        "RUNAI_STREAMER_S3_UNSIGNED": "1" if options.anon else None,
    }
    style = (options.config_kwargs.get("s3") or {}).get("addressing_style")
    if endpoint and style != "virtual":
        named["RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING"] = "0"
    if endpoint:  # nobody is asked who this machine is: that costs seconds where none answers
        named["AWS_EC2_METADATA_DISABLED"] = "true"
    return {name: value for name, value in named.items() if value}


def _without_user(url: str | None) -> str | None:
    """`url` without a name and a password, which no client of S3 sends anyway."""
    if url is None:
        return None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
