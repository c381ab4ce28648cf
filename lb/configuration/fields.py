# SPDX-License-Identifier: Apache-2.0
"""What the fields of both configuration files are made of: kinds of values, their limits, and their description.

Only the standard library is used, apart from `annotated_types` for the limits: the daemon never loads the validator.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Annotated, Any

from annotated_types import Ge, Le, Predicate

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_name(text: str) -> bool:
    """A name that needs no quoting in a shell, a URL or a metric label."""
    return 0 < len(text) <= 64 and text[0].isalnum() and all(c.isascii() and (c.isalnum() or c in "-_.") for c in text)


def is_address(text: str) -> bool:
    try:
        return not ipaddress.ip_address(text).is_unspecified
    except ValueError:
        return False


def is_interface_address(text: str) -> bool:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        return False
    return "/" in text


def is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


Name = Annotated[str, Predicate(is_name)]
Address = Annotated[str, Predicate(is_address)]
InterfaceAddress = Annotated[str, Predicate(is_interface_address)]
Network = Annotated[str, Predicate(is_network)]
Port = Annotated[int, Ge(0), Le(65535)]
Identity = Annotated[int, Ge(0), Le(16383)]

# What a failed predicate is called in an error message.
ALLOWED_TEXT: Mapping[Any, str] = MappingProxyType(
    {
        is_name: "1 to 64 letters, digits, '-', '_' or '.', starting with a letter or digit",
        is_address: "an IPv4 or IPv6 address without prefix length",
        is_network: "an IPv4 or IPv6 network without host bits, such as 172.16.0.0/16",
        is_interface_address: "an IPv4 or IPv6 address with prefix length, such as 10.0.1.100/24",
    }
)


def described(
    description: str, /, *, default: Any = ..., key: str = "", internal: bool = False, factory: Any = None
) -> Any:
    """A dataclass field with its text for the documentation.

    `key` is its name in the file where that differs (tables of arrays are singular in TOML). An `internal` field is
    the daemon's own bookkeeping: it is stored and sent with the rest, and refused in a file written by an operator.
    """
    metadata = {"description": description, "key": key, "internal": internal}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


class Strict:
    """Mixed into every class of a file: the validator refuses keys that are not fields."""

    __slots__ = ()
    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012  (read by the validator, never written)
