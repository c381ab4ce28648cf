# SPDX-License-Identifier: Apache-2.0
"""Gives backends the receiving end of tunnels, on kernels without tunnel devices: a small XDP program.

    python -m netlab.decapsulate NAMESPACE:DEVICE …

Compiles once, attaches to every device named and exits; the programs live as long as their devices. A process of its
own, because the compiler costs more than 100 MB.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path

from ebpf import libbpf
from ebpf.compile import write_header_tree
from netlab import namespaces

SOURCE = Path(__file__).with_name("decapsulate.c")
PROGRAM = "decapsulate"


def attach(device: str, program: int) -> None:
    libbpf.xdp_attach(socket.if_nametoindex(device), program, libbpf.XDP_FLAGS_SKB)


def main(targets: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="lab-headers-") as headers:
        write_header_tree(Path(headers))
        os.environ["BCC_KERNEL_SOURCE"] = headers
        from bcc import BPF  # reads the variable when it is loaded

        program = BPF(text=SOURCE.read_text(), cflags=["-Wno-macro-redefined", "-O2"]).load_func(PROGRAM, BPF.XDP)
        for target in targets:
            namespace, _, device = target.rpartition(":")
            namespaces.run_inside(namespace, attach, device, program.fd)


if __name__ == "__main__":
    main(sys.argv[1:])
