# SPDX-License-Identifier: Apache-2.0
"""Text in manual pages."""


def escaped(text: str) -> str:
    """A line as man(7) prints it, whatever characters are in it."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{plain}" if plain.startswith((".", "'")) else plain
