# SPDX-License-Identifier: Apache-2.0
"""A trouble that is met again at every try is news only once."""


class Trouble:
    """Tells whether an error is news: when a trouble begins, and when it becomes another one."""

    def __init__(self) -> None:
        self._told = ""

    def is_news(self, error: Exception) -> bool:
        """Whether this was not told yet; from now on it was."""
        before, self._told = self._told, str(error)
        return self._told != before

    def end(self) -> None:
        """It is over: the next error is news, whatever it says."""
        self._told = ""
