# SPDX-License-Identifier: Apache-2.0
"""The completion scripts that are installed for all users: `python -m tools.lbctl.completion bash|zsh|fish`.

They ask `lbctl` itself, so they know the commands it has, and the live names of services, backends, VIPs and nodes.
"""

import sys

from typer.completion import get_completion_script  # type: ignore[attr-defined]

COMMAND, VARIABLE = "lbctl", "_LBCTL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
# zsh loads the file at the first use and expects it to complete already then.
ZSH_FIRST_USE = '[[ ${funcstack[1]} != _lbctl ]] || _lbctl_completion "$@"\n'


def script(shell: str) -> str:
    """The text of the file that the shell loads. ValueError for a shell that is not served."""
    if shell not in SHELLS:
        raise ValueError(f"{shell}: not one of {', '.join(SHELLS)}")
    text = get_completion_script(prog_name=COMMAND, complete_var=VARIABLE, shell=shell).strip() + "\n"
    return text + ZSH_FIRST_USE if shell == "zsh" else text


def main() -> int:
    try:
        print(script(sys.argv[1] if len(sys.argv) > 1 else ""), end="")
    except ValueError as error:
        print(f"completion: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
