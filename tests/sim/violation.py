# SPDX-License-Identifier: Apache-2.0
"""How a checker says that something does not hold."""

Identity = tuple[int, int]
"""(node id, incarnation): a node that restarts is another one."""


class Violation(AssertionError):
    """A property does not hold."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
