# SPDX-License-Identifier: Apache-2.0
"""The installed completion scripts, in the shells that use them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.lbctl.completion import SHELLS, script
from tools.lbctl.output import console

PROBE = 'source {file}; COMP_WORDS=(lbctl dr); COMP_CWORD=1; _lbctl_completion lbctl; echo "${{COMPREPLY[@]}}"'


def test_bash_completes_commands_with_the_script(tmp_path: Path) -> None:
    file = tmp_path / "lbctl"
    file.write_text(script("bash"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", PROBE.format(file=file)], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert (done.stdout.split(), done.stderr) == (["drain"], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_ask_lbctl_itself(shell: str) -> None:
    text = script(shell)
    assert "_LBCTL_COMPLETE" in text
    assert shell != "zsh" or text.startswith("#compdef lbctl\n"), "zsh finds the command in the first line"
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=text, text=True).returncode == 0


def test_another_shell_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools.lbctl.completion", "tcsh"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "bash, zsh, fish" in done.stderr


def test_addresses_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Between colons an address may look like the name of a picture."""
    console().print("VIP fd00:2::100 and 2001:db8::100:1")
    assert capsys.readouterr().out.strip() == "VIP fd00:2::100 and 2001:db8::100:1"
