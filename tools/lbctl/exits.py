# SPDX-License-Identifier: Apache-2.0
"""Exit codes of lbctl, the one list: scripts rely on them, docs/lbctl.md is generated from them."""

from enum import IntEnum


class Exit(IntEnum):
    """What went wrong, by number."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DENIED = 4
    NOT_FOUND = 5
    CONFLICT = 6
    INVALID = 7
    LACKING = 8
    ABORTED = 9


MEANING = {
    Exit.OK: "done",
    Exit.FAILED: "the gateway failed at it or refused it for another reason than those below",
    Exit.USAGE: "the command line is wrong",
    Exit.UNREACHABLE: "the API or lbd does not answer",
    Exit.DENIED: "not permitted",
    Exit.NOT_FOUND: "no such service, backend, VIP or node",
    Exit.CONFLICT: "the configuration was changed by somebody else meanwhile",
    Exit.INVALID: "the configuration or a value is invalid",
    Exit.LACKING: "doctor found something required to be missing",
    Exit.ABORTED: "not confirmed, nothing was changed",
}

OF_CODE = {
    "unavailable": Exit.UNREACHABLE,
    "timeout": Exit.UNREACHABLE,
    "denied": Exit.DENIED,
    "unauthenticated": Exit.DENIED,
    "not_found": Exit.NOT_FOUND,
    "conflict": Exit.CONFLICT,
    "version_mismatch": Exit.CONFLICT,
    "invalid": Exit.INVALID,
    "bad_request": Exit.INVALID,
}
