# SPDX-License-Identifier: Apache-2.0
"""`lbd`: the command line and the life of the daemon's process."""

# ruff: noqa: E402  (the allocator must be settled before numpy is loaded)
from lb.process.memory import give_back, settle_allocator

settle_allocator()

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from ebpf.loader import LoaderError
from ebpf.maps import LayoutMismatchError
from lb import __version__
from lb.configuration import validate
from lb.configuration.advice import node_advice
from lb.configuration.gateway_addresses import ring_addresses
from lb.configuration.node import ConfigError, NodeConfig
from lb.control import ControlError
from lb.daemon import AlreadyRunning, Daemon
from lb.engine.packet_engine import EngineError
from lb.engine.packet_path import detach_path, release_held
from lb.process.workers import spawn_with_fork, worker_pool

NODE_FILE_HELP = "the node file; its [ring.peers] are read again on SIGHUP"
EXIT_OK, EXIT_FAILED, EXIT_CONFIG = 0, 1, 2
# The interpreter hands the processor from a working thread to the event loop after this time.
SWITCH_SECONDS = 0.0005
WORKERS_MAX = 8
REFUSALS = (LoaderError, LayoutMismatchError, AlreadyRunning, EngineError, ControlError, OSError)
log = logging.getLogger("lb")


def parser() -> argparse.ArgumentParser:
    """The command line, also the source of the manual page."""
    result = argparse.ArgumentParser(prog="lbd", description="Gateway daemon of rainlb.")
    result.add_argument("--config", type=Path, required=True, metavar="FILE", help=NODE_FILE_HELP)
    result.add_argument("--services", type=Path, metavar="FILE", help="a cluster file, applied at start and on SIGHUP")
    result.add_argument("--check", action="store_true", help="validate the files, the ring's key file too, and exit")
    result.add_argument("--detach", action="store_true", help="when stopped, take the data path out as well")
    result.add_argument(
        "--remove", action="store_true", help="take the data path out and exit (no daemon may be running)"
    )
    result.add_argument("--no-api", action="store_true", help="do not start the API process (it has a unit of its own)")
    result.add_argument("--no-children", action="store_true", help="do not start the API and health processes")
    result.add_argument(
        "--log-level", default="info", choices=["debug", "info", "warning", "error"], help="default: info"
    )
    result.add_argument("--version", action="version", version=f"rainlb {__version__}")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        node = _read_files(options)
        if options.check:
            return _check(node, options)
        return _remove(node) if options.remove else _run(node, options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIG
    except REFUSALS as error:
        print(f"lbd: {error}", file=sys.stderr)
        return EXIT_FAILED


def _read_files(options: argparse.Namespace) -> NodeConfig:
    node = validate.node_config(validate.read_file(options.config), str(options.config))
    if options.services is not None:
        services = validate.read_file(options.services)
        validate.cluster_config(services, str(options.services), gateway_addresses=ring_addresses(node))
    return node


def _check(node: NodeConfig, options: argparse.Namespace) -> int:
    if node.ring is not None:
        # The ring's libraries are for gateways that have one.
        from lb.cluster.ring_settings import ring_config

        ring_config(node)
        print(f"{node.ring.key_file}: in order")
    for file in filter(None, (options.config, options.services)):
        print(f"{file}: in order")
    for text in node_advice(node):
        print(f"{options.config}: {text}")
    return EXIT_OK


def _remove(node: NodeConfig) -> int:
    vips = release_held(node)
    names = detach_path(node)
    print(f"taken off: {', '.join(names) or 'nothing was attached'}")
    if vips:
        print(f"VIPs released: {', '.join(vips)}")
    return EXIT_OK


def _children(options: argparse.Namespace) -> frozenset[str]:
    if options.no_children:
        return frozenset()
    return frozenset({"health"} if options.no_api else {"api", "health"})


def _run(node: NodeConfig, options: argparse.Namespace) -> int:
    sys.setswitchinterval(SWITCH_SECONDS)
    for text in node_advice(node):
        log.warning("%s: %s", options.config, text)
    if node.ring is not None:
        spawn_with_fork()
    daemon = Daemon(node, options.config.resolve(), options.services, children=_children(options))
    uvloop.run(_serve(daemon, detach=options.detach))
    return EXIT_OK


async def _serve(daemon: Daemon, *, detach: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(worker_pool(daemon.node, WORKERS_MAX, "lbd"))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: daemon.gateway.spawn(daemon.shut_down(detach=detach), "stop"))
    loop.add_signal_handler(signal.SIGHUP, lambda: daemon.gateway.spawn(daemon.reload(), "reload"))
    await daemon.start()
    # What start-up allocated lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    give_back()
    log.info(
        "node %s of cluster %s serves, configuration %d",
        daemon.node.node.name,
        daemon.node.cluster,
        daemon.gateway.store.current.version,
    )
    daemon.gateway.notifier.ready("in service")
    daemon.gateway.spawn(daemon.watch_dog(), "watchdog")
    await daemon.stopped.wait()


if __name__ == "__main__":
    sys.exit(main())
