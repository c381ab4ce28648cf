# SPDX-License-Identifier: Apache-2.0
"""What is found out about the host."""

import json
import subprocess
import sys
from pathlib import Path

from netlab.commands import run

from ebpf.probe import clock_offset_s
from tests.unit.cluster_namespaces import pair

ASK = "from ebpf.probe import driver_of; print(driver_of('wire'), driver_of('lo'), driver_of('nosuch'))"


def test_drivers_are_those_of_the_network_namespace_one_is_in() -> None:
    with pair() as hosts:
        assert hosts.python(hosts.left, ASK).split() == ["veth", "virtual", "virtual"]


IN_TIME_NAMESPACE = ["unshare", "--time", "--monotonic", "1000", "--fork", sys.executable, "-c"]
ASK_CLOCK = """
from dataclasses import asdict
import json
from ebpf.probe import probe
print(json.dumps([asdict(check) for check in probe() if check.name == "clock"]))
"""


def test_a_time_namespace_whose_monotonic_clock_is_another_is_no_place_for_a_gateway() -> None:
    """Leases are written by this process's clock and read by the kernel's."""
    (check,) = json.loads(run(*IN_TIME_NAMESPACE, ASK_CLOCK))
    assert (check["ok"], check["required"]) == (False, True)
    assert "1000 s" in check["detail"]
    assert "outside of the time namespace" in check["remedy"]
    assert clock_offset_s() == 0


def test_a_gateway_does_not_start_there(tmp_path: Path) -> None:
    node = f'cluster = "c"\n[node]\nname = "gw1"\nid = 1\nrun_dir = "{tmp_path}"\nstate_dir = "{tmp_path}"\n'
    (tmp_path / "node.toml").write_text(node + '[[interface]]\nname = "lo"\nsegment = "lan"\n')
    command = [*IN_TIME_NAMESPACE, "from lb.main import main; raise SystemExit(main())"]
    done = subprocess.run(
        [*command, "--config", str(tmp_path / "node.toml")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "outside of the time namespace" in done.stderr
