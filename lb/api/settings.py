# SPDX-License-Identifier: Apache-2.0
"""The [api] table of the node file: who may do what, and the optional TLS listener."""

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lb.api.shapes import Role

CONTROL_SOCKET_NAME = "control.sock"
API_SOCKET_NAME = "api.sock"
AUDIT_FILE_NAME = "audit.jsonl"
PIN_DIR_NAME = "bpf"


class SettingsError(Exception):
    """The node file cannot be used; the text names file, field, value and what is allowed."""


class Access(BaseModel):
    """One rule: a user or a group of the socket's peer gets a role."""

    model_config = ConfigDict(extra="forbid")
    user: str | None = None
    group: str | None = None
    role: Role

    @model_validator(mode="after")
    def _names_one(self) -> "Access":
        if (self.user is None) == (self.group is None):
            raise ValueError('give either user = "…" or group = "…"')
        return self


class ApiTable(BaseModel):
    """[api] in the node file; every field has a default."""

    model_config = ConfigDict(extra="forbid")
    group: str = Field(default="lb", description="group that may connect to the Unix socket")
    access: Annotated[list[Access], Field(max_length=256)] = Field(
        default=[],
        description="roles by user or group; root configures; the socket's group operates unless listed",
    )
    listen: str = Field(default="", description="host:port of the TLS listener, empty for none")
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    tokens_file: Path | None = Field(default=None, description="lines of role:name:sha256-of-token, mode 0600")
    allow_origins: Annotated[list[str], Field(max_length=64)] = Field(
        default=[], description="pages of other clusters' gateways that may call this API from a browser"
    )

    @model_validator(mode="after")
    def _listener_is_complete(self) -> "ApiTable":
        if self.listen and not (self.certificate_file and self.private_key_file and self.tokens_file):
            raise ValueError(
                "listen needs certificate_file, private_key_file and tokens_file: all three, or no listener"
            )
        if self.listen and not self.listen.rpartition(":")[2].isdigit():
            raise ValueError(f"listen = {self.listen!r} is not host:port, for example 192.0.2.1:8443")
        return self


class Settings(BaseModel):
    """What the API process takes from the node file."""

    cluster: str = ""
    node_name: str
    run_dir: Path
    state_dir: Path
    interfaces: list[str] = []
    replicates_conntrack: bool = False
    api: ApiTable = ApiTable()

    @property
    def control_socket(self) -> Path:
        return self.run_dir / CONTROL_SOCKET_NAME

    @property
    def api_socket(self) -> Path:
        return self.run_dir / API_SOCKET_NAME

    @property
    def first_interface(self) -> str | None:
        return self.interfaces[0] if self.interfaces else None

    @property
    def pin_dir(self) -> Path:
        """Where lbd pins this node's maps and program."""
        return self.run_dir / PIN_DIR_NAME / self.node_name

    @property
    def audit_file(self) -> Path:
        return self.state_dir / AUDIT_FILE_NAME


def load_settings(path: Path) -> Settings:
    """Read the node file at path. Raises SettingsError. The rest of the file is lbd's."""
    try:
        document = tomllib.loads(path.read_text())
        node = document.get("node", {})
        return Settings(
            cluster=document.get("cluster", ""),
            node_name=node.get("name", ""),
            run_dir=node.get("run_dir", "/run/lb"),
            state_dir=node.get("state_dir", "/var/lib/lb"),
            interfaces=[str(row.get("name", "")) for row in document.get("interface", [])],
            replicates_conntrack=document.get("conntrack", {}).get("replicate", False),
            api=ApiTable.model_validate(document.get("api", {})),
        )
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{path}: {where}: {first['msg']} (given: {first['input']!r})") from error
