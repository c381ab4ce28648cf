# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.packet.oracle --count N --seed S`: as root; makes and leaves namespaces of its own."""

import argparse
import os
import sys
import time
from pathlib import Path

from ebpf import loader
from tests.packet.oracle.compare import Comparison, Disagreement, make_network, pin_to_one_cpu, program

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
INSIDE = "RAINLB_ORACLE_INSIDE"


def enter_own_namespaces() -> None:
    """Starts over inside new network and mount namespaces, so that nothing outside is touched or left behind."""
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.packet.oracle", *sys.argv[1:]]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.packet.oracle")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if INSIDE not in os.environ:
        enter_own_namespaces()
    pin_to_one_cpu()
    make_network()
    bpffs = Path("/run/rainlb-oracle")
    loader.ensure_bpffs(bpffs)
    began = time.monotonic()
    with program(bpffs / "oracle") as (maps, entry, where):
        try:
            tally = Comparison(options.seed, maps, entry, where).run(options.count)
        except Disagreement as difference:
            print(difference)
            return 1
    print(f"{tally.packets} packets in {time.monotonic() - began:.1f} s: {dict(tally.verdicts)}")
    print(f"asked for the reason {tally.asked} times; {tally.verified} forwarded packets verified")
    for reason, number in sorted(tally.reasons.items()):
        print(f"  {reason:28} {number}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
