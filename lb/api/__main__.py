# SPDX-License-Identifier: Apache-2.0
"""The API process: `python -m lb.api --config FILE`."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from lb.api.access import load_tokens
from lb.api.app import build
from lb.api.audit import AuditLog
from lb.api.gateway import Gateway
from lb.api.inventory import hub_of
from lb.api.pinned import PinnedDataPath
from lb.api.sampler import Sampler
from lb.api.server import serve
from lb.api.settings import Settings, SettingsError, load_settings
from lb.control.client import ControlClient

EXIT_CONFIG = 78  # sysexits.h EX_CONFIG: systemd shows it by name


def assemble(settings: Settings) -> Gateway:
    """The parts of the process, none of them started. Raises SettingsError."""
    tokens = load_tokens(settings.api.tokens_file) if settings.api.tokens_file else []
    control = ControlClient(settings.control_socket)
    datapath = PinnedDataPath(settings.pin_dir)
    sampler = Sampler(datapath)
    gateway = Gateway(settings, control, datapath, sampler, AuditLog(settings.audit_file), tokens)
    gateway.hub = hub_of(gateway)
    return gateway


async def run(settings: Settings) -> None:
    gateway = assemble(settings)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    gateway.hub.start()
    try:
        await serve(build(gateway), settings, gateway.hub.stop)
    finally:
        await gateway.control.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="lb-api", description="HTTP API of a rainlb gateway.")
    parser.add_argument("--config", type=Path, required=True, help="the node file lbd runs with")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="lb-api %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(run(load_settings(arguments.config)))
    except SettingsError as error:
        print(f"lb-api: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG)
    except OSError as error:
        print(f"lb-api: cannot listen: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
