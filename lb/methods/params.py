# SPDX-License-Identifier: Apache-2.0
"""Parameters of control methods, checked."""

from typing import Any

from lb.control import ControlError

Params = dict[str, Any]


def text_param(params: Params, name: str) -> str:
    """A text parameter. Raises ControlError."""
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise ControlError("bad_request", f"parameter {name} must be a text", field=name)
    return value


def int_param(params: Params, name: str, lowest: int, highest: int, default: int | None = None) -> int:
    """A whole number within bounds. Raises ControlError."""
    value = params.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise ControlError("bad_request", f"parameter {name} must be a number from {lowest} to {highest}", field=name)
    return value
