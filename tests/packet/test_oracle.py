# SPDX-License-Identifier: Apache-2.0
"""The program against the plain-Python oracle on 100,000 random and mutated packets."""

import re
import subprocess
import sys

import pytest

PACKETS_PER_SEED = 50_000
SEEDS = (1, 7)

# What the traffic must reach in every run; the rest (no headroom, no route, ...) is in the packet tables.
REACHED = {
    *("DROP_EXTENSION_HEADERS", "DROP_FRAGMENT_UNKNOWN", "DROP_ICMP_UNMATCHED", "DROP_LEASE_EXPIRED", "DROP_FAMILY"),
    *("DROP_MALFORMED_IPV4", "DROP_MALFORMED_IPV6", "DROP_MALFORMED_TRANSPORT", "DROP_NEIGHBOUR_UNKNOWN"),
    *("DROP_NO_TARGET", "DROP_TARGET_DEAD", "DROP_TOO_BIG", "DROP_TTL"),
    *("PASS_ICMP", "PASS_LOCAL", "PASS_NEIGHBOUR", "PASS_NEIGHBOUR_UNKNOWN", "PASS_NOT_IP", "PASS_NOT_OURS"),
    *("PASS_OWN_ADDRESS", "PASS_PROTOCOL", "SENT_ECHO", "SENT_FORWARDED", "SENT_ICMP_ERROR", "SENT_RESET"),
    *("SENT_RETURNED", "SENT_STEERED", "SENT_STEERED_TUNNEL", "SENT_TIME_EXCEEDED", "SENT_TOO_BIG"),
}


@pytest.mark.timeout(600)
def test_program_and_oracle_agree_on_verdict_reason_bytes_and_tables() -> None:
    command = [sys.executable, "-m", "tests.packet.oracle", "--count", str(PACKETS_PER_SEED), "--seed"]
    runs = [subprocess.Popen([*command, str(seed)], stdout=subprocess.PIPE, text=True) for seed in SEEDS]
    for run in runs:
        output, _ = run.communicate()
        assert run.returncode == 0, output
        assert f"{PACKETS_PER_SEED} packets" in output
        verified = re.search(r"(\d+) forwarded packets verified", output)
        assert verified is not None, output
        assert int(verified[1]) > PACKETS_PER_SEED // 4
        missing = {name for name in REACHED if f"  {name} " not in output}
        assert not missing, f"never reached: {sorted(missing)}\n{output}"
