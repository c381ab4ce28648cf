# SPDX-License-Identifier: Apache-2.0
"""Configurations as plain data and back: for messages between gateways and processes, for storage, for fingerprints."""

import hashlib
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgpack

from lb.configuration.model import ClusterConfig

T = TypeVar("T")


def to_plain(value: Any) -> Any:
    """The value as dicts, lists and scalars (keys are the field names), fit for msgpack and JSON."""
    if is_dataclass(value):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    return value


def from_plain(kind: type[T], plain: Any) -> T:
    """The inverse of `to_plain` for a value that was validated before it was stored or sent.

    Fields that are absent take their defaults and unknown ones are ignored, so that neighbouring versions of the
    daemon can exchange configurations. Raises ValueError when the structure is not that of `kind`.
    """
    return _rebuild(kind, plain)  # type: ignore[no-any-return]


def _rebuild(kind: Any, plain: Any) -> Any:
    origin = get_origin(kind)
    if origin is Annotated:
        return _rebuild(get_args(kind)[0], plain)
    if origin is tuple:
        if not isinstance(plain, (list, tuple)):
            raise ValueError(f"expected a list, got {type(plain).__name__}")
        return tuple(_rebuild(get_args(kind)[0], item) for item in plain)
    if origin is dict:
        if not isinstance(plain, dict):
            raise ValueError(f"expected a table, got {type(plain).__name__}")
        return {key: _rebuild(get_args(kind)[1], item) for key, item in plain.items()}
    if is_dataclass(kind):
        return _rebuild_dataclass(kind, plain)
    members = get_args(kind)
    dataclass_member = next((member for member in members if is_dataclass(member)), None)
    if dataclass_member is not None:
        return None if plain is None else _rebuild(dataclass_member, plain)
    return plain


def _rebuild_dataclass(kind: Any, plain: Any) -> Any:
    if not isinstance(plain, dict):
        raise ValueError(f"expected the fields of {kind.__name__}, got {type(plain).__name__}")
    hints = _hints(kind)
    try:
        return kind(**{name: _rebuild(hint, plain[name]) for name, hint in hints.items() if name in plain})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None


_hints_by_class: dict[Any, dict[str, Any]] = {}


def _hints(kind: Any) -> dict[str, Any]:
    hints = _hints_by_class.get(kind)
    if hints is None:
        known = get_type_hints(kind, include_extras=True)
        hints = _hints_by_class[kind] = {item.name: known[item.name] for item in fields(kind)}
    return hints


def pack(config: ClusterConfig) -> bytes:
    """Canonical bytes of a configuration: the same on every gateway for the same value."""
    return msgpack.packb(to_plain(config))  # type: ignore[no-any-return]


def unpack(data: bytes) -> ClusterConfig:
    """Raises ValueError for bytes that are not a packed configuration."""
    try:
        return from_plain(ClusterConfig, msgpack.unpackb(data))
    except (msgpack.UnpackException, msgpack.FormatError, TypeError) as error:
        raise ValueError(f"not a packed configuration: {error}") from None


def digest(config: ClusterConfig) -> str:
    """Short fingerprint of the whole value, version and identities included."""
    return hashlib.blake2b(pack(config), digest_size=8).hexdigest()
