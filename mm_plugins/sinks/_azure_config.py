"""The settings of an Azure backend."""

from __future__ import annotations

from pydantic import Field, SecretStr

from mm_core import PluginConfig


class AzureOptions(PluginConfig):
    """How Azure is reached.

    Without any, AZURE_STORAGE_* hold, and then what azure-identity finds: variables, a
    managed or workload identity, ``az login``.
    """

    account_name: str | None = Field(default=None, description="The storage account")
    endpoint_url: str | None = Field(
        default=None, description="The blob service's URL, for other clouds and servers"
    )
    connection_string: SecretStr | None = Field(default=None, description="As the portal shows it")
    account_key: SecretStr | None = Field(default=None, description="A key of the account")
    sas_token: SecretStr | None = Field(default=None, description="A shared access signature")
    tenant_id: str | None = Field(default=None, description="The tenant of a service principal")
    client_id: str | None = Field(default=None, description="Its id, or that of an identity")
    client_secret: SecretStr | None = Field(default=None, description="Its secret")
    anon: bool = Field(default=False, description="Ask without credentials")


class Config(PluginConfig):
    """The settings of an Azure backend."""

    root: str = Field(
        description="az://container/prefix, or abfss://container@account.dfs.core.windows.net/prefix"
    )
    options: AzureOptions = Field(default_factory=AzureOptions, description="How Azure is reached")
