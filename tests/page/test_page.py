# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: what an operator sees and does, against the API process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.page.page_support import chromium, opened
from tests.unit.api_support import NODES, TOKEN, RunningApi, running_api, tls_listener
from tests.unit.test_api_http import fill_connections

# On an idle machine 0.2 s.
SEEN_WITHIN_MS = 5000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with running_api(tmp_path_factory.mktemp("page") / "gw") as running:
        fill_connections(running)
        yield running


@pytest.fixture
def api(started: RunningApi) -> RunningApi:
    """The same gateway as it was at the beginning."""
    started.control.reset()
    started.control.emit("node.joined", "gw3 joined: view 7", node="gw3")
    return started


def card(page: Page, node: str) -> str:
    return f'#nodes > li[data-key="{node}"]'


def vip(page: Page, address: str) -> str:
    return f'button.vip:has-text("{address}")'


def test_everything_of_the_cluster_is_there(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        expect(page.locator(card(page, "gw1")).locator("button.vip")).to_contain_text("10.0.1.100")
        expect(page.locator(card(page, "gw2")).locator("button.vip")).to_contain_text("2001:db8:1::100")
        expect(page.get_by_role("img", name="Ring of gw1, gw2, gw3")).to_be_visible()
        expect(page.get_by_role("group", name="Service web")).to_contain_text("2 of 2 up")
        expect(page.locator("#events")).to_contain_text("gw3 joined: view 7")
        expect(page.locator("#tiles")).to_contain_text("3 / 3")
        expect(page).to_have_title("test · rainlb")
        assert "key=" not in page.url, "the key must not stay in the address"


def test_a_vip_is_dragged_to_another_gateway(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        page.locator(vip(page, "10.0.1.100")).drag_to(page.locator(card(page, "gw3")))
        expect(page.locator(card(page, "gw3")).locator("button.vip")).to_contain_text("10.0.1.100")
        assert api.control.owner["10.0.1.100"] == "gw3"
        expect(page.locator("#toasts")).to_contain_text("10.0.1.100 moves to gw3")


def test_a_vip_is_moved_pinned_and_preferred_by_keyboard(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        page.locator(vip(page, "10.0.1.100")).focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("menuitem", name="Move to gw2")).to_be_focused()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        expect(page.locator(card(page, "gw3")).locator("button.vip")).to_contain_text("10.0.1.100")
        page.locator(vip(page, "10.0.1.100")).focus()
        page.keyboard.press("Enter")
        page.get_by_role("menuitem", name="Pin to gw3").press("Enter")
        expect(page.get_by_role("button", name="VIP 10.0.1.100, held by gw3, pinned to gw3")).to_be_visible()
        page.locator(vip(page, "10.0.1.100")).press("Enter")
        page.get_by_role("menuitem", name="Prefer gw2").press("Enter")
        expect(page.get_by_role("button", name="prefers gw2")).to_be_visible()
        assert api.control.prefer["10.0.1.100"] == ["gw2"]


def test_a_vip_announced_as_a_route_is_at_every_gateway(browser: Browser, api: RunningApi) -> None:
    api.control.routed = ["198.51.100.7"]
    with opened(browser, api) as page:
        chips = {name: page.locator(card(page, name)).locator("button.vip", has_text="198.51.100.7") for name in NODES}
        for chip in chips.values():
            expect(chip).to_contain_text("as a route")
            expect(chip).to_have_attribute("draggable", "false")
        expect(page.locator("#health")).to_have_text("all is well")
        # There is nothing to move: its menu is the gateway's.
        chips["gw2"].press("Enter")
        page.get_by_role("menuitem", name="Drain").press("Enter")
        expect(chips["gw2"]).to_have_count(0)
        assert api.control.drained == {"gw2"}


def test_a_dying_gateway_is_seen_at_once(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        begin = time.monotonic()
        api.control.gone.add("gw2")
        api.control.owner["2001:db8:1::100"] = "gw3"
        api.control.emit("node.left", "gw2 left: no answer to the token", node="gw2", severity="error")
        expect(page.locator(card(page, "gw2"))).to_contain_text("gone", timeout=SEEN_WITHIN_MS)
        expect(page.locator(card(page, "gw3")).locator("button.vip")).to_be_visible(timeout=SEEN_WITHIN_MS)
        expect(page.locator("#events")).to_contain_text("gw2 left", timeout=SEEN_WITHIN_MS)
        assert time.monotonic() - begin < SEEN_WITHIN_MS / 1000
        expect(page.locator("#health")).to_have_text("gw2 out of service")
        expect(page.get_by_role("img", name="out: gw2")).to_be_visible()
        expect(page.locator(".ring-out")).to_contain_text("gw2 is out: no answer to the token")


def test_a_vip_without_owner_is_an_alarm(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        api.control.owner["10.0.1.100"] = None
        api.control.emit("vip.released", "10.0.1.100 has no owner")
        expect(page.locator("#health")).to_have_text("1 VIPs held by nobody")
        expect(page.locator(card(page, ""))).to_contain_text("Held by nobody")


def test_backends_are_drained_and_weighted_in_place(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        page.get_by_role("button", name="Drain web/b1").click()
        expect(page.get_by_role("button", name="Undrain web/b1")).to_be_visible()
        expect(page.locator('tr[data-key="b1"]')).to_contain_text("draining")
        weight = page.get_by_role("spinbutton", name="Weight of web/b2")
        weight.fill("9")
        weight.press("Enter")
        expect(page.locator("#toasts")).to_contain_text("web/b2: weight 9")
        assert api.control.weight["web", "b2"] == 9


def test_connections_are_searched_and_counted(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        search = page.get_by_role("search", name="Connections")
        search.get_by_label("Client port").fill("10013")
        search.get_by_role("button", name="Search").click()
        rows = page.locator("#connections tbody tr")
        expect(rows).to_have_count(1)
        expect(rows).to_contain_text("192.0.2.13:10013")
        search.get_by_label("Client port").fill("")
        search.get_by_role("button", name="Search").click()
        expect(rows).to_have_count(50)
        page.get_by_role("button", name="More").click()
        expect(rows).to_have_count(100)
        search.get_by_label("Count by").select_option("backend")
        search.get_by_role("button", name="Search").click()
        expect(rows).to_have_count(2)
        search.get_by_label("Client (or network)").fill("<img src=x>")
        search.get_by_role("button", name="Search").click()
        expect(page.locator("#connections [role=status]")).to_contain_text("source")


def test_a_refused_change_says_why(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        api.control.gone.add("gw3")
        # still on screen: nothing was told to the page yet
        page.locator(vip(page, "10.0.1.100")).drag_to(page.locator(card(page, "gw3")))
        expect(page.locator(".toast.error")).to_contain_text("no node gw3")
        assert api.control.owner["10.0.1.100"] == "gw1"


def test_lost_data_is_not_shown_as_if_it_were_live(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        api.control.stop()
        expect(page.locator("#away")).to_contain_text("lbd does not answer")
        expect(page.locator("#health")).to_have_text("no live data")
        api.control.start()
        expect(page.locator("#health")).to_have_text("all is well", timeout=8000)


def test_names_from_the_network_are_text_never_markup(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api) as page:
        api.control.emit("test", "<b id=injected>bold</b><script>window.injected = 1</script>", node="gw1")
        expect(page.locator("#events")).to_contain_text("<b id=injected>")
        assert page.locator("#injected").count() == 0
        assert page.evaluate("window.injected") is None


def test_every_control_has_a_name_and_themes_switch(browser: Browser, api: RunningApi) -> None:
    with opened(browser, api, color_scheme="light") as page:
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('main button, header button, input, select, meter, svg[role=img]')]
            .filter((e) => !(e.hidden || e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
            .map((e) => e.outerHTML)"""
        )
        assert nameless == []
        light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Switch between light and dark").click()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert light != dark
        page.reload()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark


def test_two_clusters_on_one_page(browser: Browser, api: RunningApi, tmp_path: Path) -> None:
    with opened(browser, api, ignore_https_errors=True) as page:
        origin = page.evaluate("location.origin")
        port, extra = tls_listener(tmp_path, role="operate", allow_origins=[origin])
        with running_api(tmp_path / "other", extra, cluster="second") as other:
            page.get_by_role("button", name="Add a cluster").click()
            page.get_by_label("Address of any of its gateways").fill(f"https://127.0.0.1:{port}")
            page.get_by_label("Token").fill(TOKEN)
            page.get_by_role("button", name="Add", exact=True).click()
            expect(page).to_have_title("second · rainlb")
            page.locator(vip(page, "10.0.1.100")).drag_to(page.locator(card(page, "gw2")))
            expect(page.locator(card(page, "gw2"))).to_contain_text("10.0.1.100")
            assert other.control.owner["10.0.1.100"] == "gw2"
            assert api.control.owner["10.0.1.100"] == "gw1"
            page.get_by_role("button", name="test", exact=True).click()
            expect(page).to_have_title("test · rainlb")
