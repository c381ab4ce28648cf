# SPDX-License-Identifier: Apache-2.0
"""The manual page of lbd, from its options."""

import argparse

from lb.main import parser
from tools.reference.roff import escaped

MANUAL_HEAD = [
    '.\\" SPDX-License-Identifier: Apache-2.0',
    '.\\" Written by python -m tools.reference; change lb/main.py instead.',
    ".TH LBD 8",
    ".SH NAME",
    "lbd \\- gateway daemon of rainlb",
    ".SH SYNOPSIS",
    ".B lbd",
    "\\-\\-config FILE [OPTION]...",
]
DESCRIPTION = [
    "lbd runs one gateway of a cluster: it brings the packet path into the kernel, keeps it as the configuration wants",
    "it, and joins the other gateways' ring. The packet path outlives the daemon: while it is stopped, killed,",
    "restarted or upgraded, packets keep flowing to where they flowed before.",
]
SECTIONS = {
    "SIGNALS": [
        (
            "SIGHUP",
            "Read [ring.peers] of the node file again, and the cluster file given with --services; a faulty file, or "
            "another change in the node file, changes nothing.",
        ),
        ("SIGTERM, SIGINT", "Stop. The packet path stays, unless --detach was given."),
    ],
    "EXIT STATUS": [
        ("0", "Stopped as asked."),
        ("1", "The gateway cannot be run here; the message says why and what to do."),
        ("2", "A configuration file has faults; all are listed with their places."),
    ],
    "FILES": [
        ("/etc/rainlb/node.toml", "The node file."),
        ("/run/lb", "Sockets (control.sock, api.sock) and the BPF file system (bpf)."),
        ("/var/lib/lb", "The last configuration and the journal of events."),
    ],
}


def lbd_page() -> str:
    """lbd(8) in man(7) macros."""
    command = parser()
    lines = [*MANUAL_HEAD, ".SH DESCRIPTION", *DESCRIPTION, ".SH OPTIONS"]
    for action in command._actions:
        lines += [".TP", _option(action), escaped(action.help or "")]
    for title, entries in SECTIONS.items():
        lines.append(f".SH {title}")
        for term, text in entries:
            lines += [".TP", f".B {escaped(term)}", escaped(text)]
    lines += [".SH SEE ALSO", ".BR lbctl (1)"]
    return "\n".join(lines) + "\n"


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    value = action.metavar or (f"{{{','.join(action.choices)}}}" if action.choices else "")
    return f".B {escaped(names)} {value}".rstrip()
