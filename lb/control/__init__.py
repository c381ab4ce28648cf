# SPDX-License-Identifier: Apache-2.0
"""The control socket: how the API process, the health process and scripts talk to the daemon."""

from lb.control.protocol import ControlError
from lb.control.server import Caller, ControlServer

__all__ = ["Caller", "ControlError", "ControlServer"]
