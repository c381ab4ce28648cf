# SPDX-License-Identifier: Apache-2.0
"""A real Chromium on the page, served by `lbctl page` from the API process."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.unit.api_support import ROOT, RunningApi

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@contextlib.contextmanager
def served_page(socket: Path) -> Iterator[str]:
    """The address, key included, that `lbctl page` prints for an API socket."""
    environment = {**os.environ, "LBCTL_SOCKET": str(socket), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "tools.lbctl.main", "page", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def _serious(message: ConsoleMessage) -> list[str]:
    """Errors of the page itself; that a request was refused is what some tests are about."""
    refused = message.text.startswith("Failed to load resource: the server responded")
    return [message.text] if message.type == "error" and not refused else []


@contextlib.contextmanager
def opened(browser: Browser, api: RunningApi, **options: object) -> Iterator[Page]:
    """The page of an API process that has nothing to complain about."""
    with opened_at(browser, api.socket, **options) as page:
        page.get_by_text("all is well").wait_for(timeout=10_000)
        yield page


@contextlib.contextmanager
def opened_at(browser: Browser, socket: Path, **options: object) -> Iterator[Page]:
    """The page in a fresh browser profile, with whatever went wrong in it collected; fails if anything did."""
    complaints: list[str] = []
    with served_page(socket) as address:
        context = browser.new_context(viewport={"width": 1440, "height": 1000}, **options)  # type: ignore[arg-type]
        page = context.new_page()
        page.on("console", lambda message: complaints.extend(_serious(message)))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        try:
            yield page
        finally:
            context.close()
    assert not complaints, complaints
