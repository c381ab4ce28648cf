# SPDX-License-Identifier: Apache-2.0
"""The control methods of a gateway by itself, by what they are about."""

from lb.methods.configuration import apply, apply_text
from lb.methods.offered import register
from lb.methods.params import Params, int_param, text_param

__all__ = ["Params", "apply", "apply_text", "int_param", "register", "text_param"]
