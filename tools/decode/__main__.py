# SPDX-License-Identifier: Apache-2.0
"""`python -m tools.decode`: what went on in the ring, from a capture file or live.

    python -m tools.decode ring.pcap
    python -m tools.decode --interface eth1 --seconds 10 --config /etc/lb/node.toml

With the node's configuration file, names replace node ids, strangers are left out, and tags are checked (and payloads
decrypted) with its keys.
"""

import argparse
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scapy.error import Scapy_Exception

from sync.key_file import KeyFileError, load_key_file
from sync.sockets import PORT_DEFAULT
from tools.decode.capture import Datagram, from_file, from_interface
from tools.decode.timeline import Timeline


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.decode", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a capture (pcap or pcapng)")
    parser.add_argument("--interface", help="capture there instead")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long (default 10)")
    parser.add_argument("--port", type=int, default=PORT_DEFAULT)
    parser.add_argument("--config", type=Path, help="node configuration file: names, cluster, key file")
    parser.add_argument("--gap-ms", type=float, default=100.0, help="mark pauses between tokens above this")
    parser.add_argument("--all", action="store_true", help="acknowledgements and repetitions too")
    options = parser.parse_args(argv)
    if (options.file is None) == (options.interface is None):
        parser.error("give either a capture file or --interface")
    return options


def timeline(options: argparse.Namespace) -> Timeline:
    """A timeline with what the configuration file tells. Raises OSError, ValueError or KeyFileError."""
    if options.config is None:
        return Timeline(gap_s=options.gap_ms / 1000)
    node = tomllib.loads(options.config.read_text())
    ring: dict[str, Any] = node.get("ring", {})
    names = {int(peer["id"]): name for name, peer in ring.get("peers", {}).items()}
    if "node" in node:
        names[int(node["node"]["id"])] = str(node["node"]["name"])
    keys = load_key_file(Path(ring["key_file"])) if ring.get("key_file") else None
    return Timeline(names=names, cluster=node.get("cluster"), keys=keys, gap_s=options.gap_ms / 1000)


def datagrams(options: argparse.Namespace) -> Iterator[Datagram]:
    if options.file is not None:
        return from_file(options.file, options.port)
    return from_interface(options.interface, options.port, time.monotonic() + options.seconds, time.monotonic)


def show(lines: Timeline, source: Iterator[Datagram], everything: bool) -> None:
    first: float | None = None
    for datagram in source:
        first = datagram.time if first is None else first
        for line in lines.feed(datagram.time, datagram.payload):
            if everything or not line.detail:
                print(f"{line.time - first:10.6f}  {line.text}", flush=True)
    print("total: " + ", ".join(f"{name} {count}" for name, count in lines.counts.most_common()))


def main(argv: list[str] | None = None) -> int:
    options = arguments(argv)
    try:
        show(timeline(options), datagrams(options), options.all)
    except (OSError, ValueError, KeyFileError, Scapy_Exception) as error:
        print(f"decode: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
