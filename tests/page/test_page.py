"""The page as a person with a browser finds it: fed by the agent's own HTTP server, with sessions made of real hops."""

from __future__ import annotations

import json
import re
import urllib.request

import msgspec
import pytest

from tests.page.night import CART, REPORTS, SEARCH, TILL, Night, bad_night, shown
from tests.page.webdriver import Browser

MANY = 10_000
FAILURES = 12
ROWS = "#lookups tbody tr"
LABEL = b'<b onx=1>"&' + b"\x00\x1b[31m" + "\u202egpj\u2066".encode() + b"A" * 30
HOSTILE = b"".join(bytes([len(part)]) + part for part in (LABEL, b"<script>alert(1)</script>", b"B" * 60)) + b"\0"
LUMINANCE = """
const found = getComputedStyle(document.querySelector(arguments[0]))[arguments[1]].match(/[0-9.]+/g).map(Number);
const linear = found.slice(0, 3).map((part) => part / 255)
  .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
"""


def longest() -> bytes:
    """A name of 255 bytes, the most there can be (RFC 1035 2.3.4)."""
    return b"".join(bytes([length]) + b"x" * length for length in (63, 63, 63, 61)) + b"\0"


def rows_until(window: Browser, number: int) -> None:
    window.until("document.querySelectorAll(arguments[0]).length >= arguments[1]", ROWS, number)


def open_first(window: Browser) -> None:
    window.click(f"{ROWS} .open")
    window.until("document.querySelector('#lookup[open] .path svg')")


def luminance(window: Browser, selector: str, property_: str) -> float:
    return float(window.script(LUMINANCE, selector, property_))


def contrast(window: Browser, selector: str, ground: str) -> float:
    """WCAG 2.2, 1.4.3."""
    one, other = luminance(window, selector, "color"), luminance(window, ground, "backgroundColor")
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310  our own server
        return str(answer.read().decode())


# What is there


def test_an_incident_says_what_fails_for_whom_since_when_how_sure_that_is_and_what_to_do(page):
    window = page(bad_night())
    text = window.text('[data-code="PolicyDrop"]')
    assert "A netfilter rule (nftables, FORWARD) in network namespace 4026531840" in text
    assert "shop/Deployment/cart asking 10.96.0.10:53 (kube-system/kube-dns)" in text
    assert "open for 4 min" in text
    assert "sure (high confidence)" in text
    assert "What to do: Look at the network policies" in text
    assert "168 lookups, 1 client" in text
    assert re.search(r"first \d\d:\d\d:\d\d, last \d\d:\d\d:\d\d UTC", text)
    assert window.count('[data-code="PolicyDrop"] .course rect') > 10
    assert window.script("return document.title") == "(2) dnstrail node-a"


def test_an_incident_leads_to_its_lookups_and_back(page):
    window = page(bad_night())
    rows_until(window, 100)
    window.click('[data-code="UpstreamTimeout"] button')
    window.until("document.querySelector('#all-lookups')")
    assert set(window.texts("#lookups tbody td:nth-child(2) > span:first-child")) == {"UpstreamTimeout"}
    window.click("#all-lookups")
    assert "PolicyDrop" in window.text("#lookups")


def test_the_node_is_drawn_from_clients_to_upstreams_with_rates_latency_and_losses(page):
    window = page(bad_night())
    boxes = window.texts("#picture [data-box] > text.strong")
    assert boxes == ["cart", "reports", "search", "till", "kube-dns", "coredns-7d56l", "100.100.2.136:53"]
    text = window.text("#picture")
    assert "translated by conntrack" in text
    assert re.search(r"eth0 ▸ vethc", text)
    assert re.search(r"[\d.]+/s · [\d.]+ ms", text)
    marks = window.texts("#picture [data-mark] text")
    assert any("PolicyDrop" in mark for mark in marks)
    assert any("UpstreamTimeout" in mark for mark in marks)
    assert "PolicyDrop: 36 lookups, query lost at vethc, netns 4026531840, NETFILTER_DROP, FORWARD" in window.text(
        "#troubles"
    )
    assert "query, client to server" in window.text("#legs")


def test_lookups_that_nobody_looked_at_are_in_the_rates(page):
    night = Night()
    night.usual(CART, 3000, 0.5)
    night.pass_by(10)
    window = page(night)
    assert "300/s" in window.text("#picture")
    assert "3,000 lookups, 0 failed" in window.text("#picture-hint")
    assert window.text("#incidents") == "No incident is open."


def test_beyond_the_boxes_of_a_column_the_rest_is_one_box_that_says_so(page):
    night = Night(knows_cluster=False)
    clients = [CART.__class__("n", f"c{index}", f"172.20.3.{index}", 4026533000 + index, b"x") for index in range(30)]
    for client in clients:
        night.usual(client, 10, 0.5)
    night.pass_by(5)
    window = page(night)
    assert "22 more: clients" in window.text("#picture")
    assert window.count("#picture [data-box]") <= 12


def test_a_lost_query_is_drawn_hop_by_hop_with_times_and_the_place_where_it_died(page):
    night = Night()
    night.forbidden(CART, "stock.shop.svc.cluster.local.")
    window = page(night)
    open_first(window)
    text = window.text("#lookup")
    assert "PolicyDrop: stock.shop.svc.cluster.local. failed" in text.replace("\n", "")
    assert "high: the evidence leaves no other cause." in text
    lanes = window.script("return [...document.querySelectorAll('[data-lane]')].map((lane) => lane.dataset.lane)")
    assert lanes == ["client", "netns", "server"]
    assert "no packet was seen here" in text
    (death,) = window.texts("[data-end=dropped]")
    assert death == "+25 µsdropped: NETFILTER_DROP in nft_do_chain, hook FORWARD"


def test_a_query_that_succeeded_at_the_second_attempt_shows_both(page):
    night = Night()
    night.retried(CART, "static.example.com.")
    window = page(night)
    open_first(window)
    text = window.text("#lookup .path")
    assert "query 1 of 2" in text
    assert "query 2 of 2" in text
    assert "dropped: QDISC_DROP" in text
    assert "reply NOERROR" in text
    assert "+5.001 s" in text


def test_an_upstream_that_is_silent_is_drawn_as_not_seen(page):
    night = Night()
    night.unheard(TILL, "rates.example.org.")
    window = page(night)
    open_first(window)
    text = window.text("#lookup .path")
    assert text.count("no reply seen") == 2
    assert text.count("sent there, not seen there") == 2
    assert "reply SERVFAIL" in text


# Looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_systems_colours_and_can_be_read_in_both(page, scheme: str):
    window = page(bad_night(), scheme)
    rows_until(window, 10)
    assert (luminance(window, "body", "backgroundColor") < 0.1) is (scheme == "dark")
    for selector, ground in (
        ("body", "body"),
        (".hint", "body"),
        (".incident p", ".incident"),
        (".incident .side p", ".incident"),
        (".tag.open", ".tag.open"),
        (f"{ROWS} .bad", "#lookups"),
        (f"{ROWS} .sub", "#lookups"),
        (f"{ROWS} .open", "#lookups"),
    ):
        assert contrast(window, selector, ground) >= 4.5, (selector, scheme)


def test_the_page_is_as_wide_as_the_window_also_on_a_small_one(page):
    window = page(bad_night())
    rows_until(window, 10)
    window.look("light", 420, 800)
    assert window.script("return document.documentElement.scrollWidth") <= 420


# Live


def test_what_happens_is_shown_without_a_reload(page):
    night = Night()
    night.usual(SEARCH, 100, 0.4)
    night.pass_by(1)
    window = page(night)
    window.until("document.querySelector('#incidents').innerText === 'No incident is open.'")
    window.script("window.notReloaded = true")
    for index in range(FAILURES):
        night.forbidden(CART, f"late{index}.example.com.")
    night.pass_by(2)
    window.until("document.querySelector('[data-code=PolicyDrop]')")
    rows_until(window, 10)
    assert "late9.example.com." in window.text("#lookups")
    for _ in range(150):
        night.usual(CART, 100, 0.4)
        night.pass_by(1)
    window.until("document.querySelector('#past .incident.ended')")
    assert window.text("#incidents .none") == "No incident is open."
    assert window.script("return window.notReloaded") is True


def test_a_page_whose_agent_went_away_says_so(page):
    window = page(Night())
    page.close()
    window.until("document.querySelector('#live').dataset.state === 'lost'")
    assert "no connection" in window.text("#live")
    page._open.clear()
    window.complaints()


# Many


def test_ten_thousand_problems_are_listed_searched_and_counted(page):
    night = Night()
    for index in range(100):
        line = night.line(f"n{index}.example.com.")
        night.fill(line, MANY // 100)
    night.fill(night.line("needle.example.org."), 1)
    window = page(night)
    kept = night.watcher.memory.kept
    window.until("document.querySelector('#found').innerText.includes(arguments[0])", f"of {kept:,} match", seconds=60)
    assert window.count(ROWS) == 200
    window.script("document.querySelector('#search').focus()")
    window.type("needle example")
    window.until("document.querySelectorAll(arguments[0]).length === 1", ROWS)
    assert window.text("#found") == f"1 of {kept:,} match"
    took = window.script(
        "const begun = performance.now(); const box = document.querySelector('#search'); box.value = 'n5';"
        "box.dispatchEvent(new Event('input')); return performance.now() - begun"
    )
    assert took < 1000
    window.set("#search", "")
    window.click("#more")
    assert window.count(ROWS) == 400


def test_what_made_room_for_newer_problems_is_gone_and_said(page):
    night = Night()
    night.watcher.memory._max_bytes = 40_000
    for index in range(1000):
        night.fill(night.line(f"n{index}.example.com."), 1)
    assert night.watcher.memory.forgotten
    window = page(night)
    window.until(
        "document.querySelector('#found').innerText.includes(arguments[0])", f"of {night.watcher.memory.kept:,} match"
    )
    assert f"{night.watcher.memory.forgotten:,} older ones made room for newer ones." in window.text("#lookups-hint")


# Search and filters


def test_filters_narrow_the_list_by_cause_outcome_and_namespace(page):
    night = Night()
    night.forbidden(CART, "one.example.com.")
    night.retried(SEARCH, "two.example.com.")
    night.unheard(REPORTS, "three.example.com.")
    window = page(night)
    rows_until(window, 3)
    for selector, value, left in (
        ("#filter-cause", "PolicyDrop", "one.example.com."),
        ("#filter-status", "Succeeded", "two.example.com."),
        ("#filter-namespace", "office", "three.example.com."),
    ):
        window.set(selector, value)
        assert window.texts("#lookups .name") == [left]
        window.set(selector, "")


# Keyboard


def test_everything_can_be_reached_by_the_keyboard(page):
    night = Night()
    for index in range(5):
        night.forbidden(CART, f"n{index}.example.com.")
    window = page(night)
    rows_until(window, 5)
    focused = "document.activeElement"
    window.press("j")
    assert window.script(f"return {focused}.closest('tr').rowIndex") == 1
    window.press("j", "ArrowDown")
    assert window.script(f"return {focused}.closest('tr').rowIndex") == 3
    window.press("k")
    window.press("Enter")
    window.until("document.querySelector('#lookup[open] .path svg')")
    assert "n3.example.com." in window.text("#lookup h2")
    window.press("Escape")
    window.until("!document.querySelector('#lookup').open")
    assert window.script(f"return {focused}.closest('tr')?.rowIndex") == 2
    window.press("/")
    assert window.script(f"return {focused}.id") == "search"
    window.type("n4")
    window.until("document.querySelectorAll(arguments[0]).length === 1", ROWS)
    window.press("ArrowDown")
    assert window.script(f"return {focused}.closest('tr').rowIndex") == 1


def test_the_focus_is_to_be_seen(page):
    night = Night()
    night.forbidden(CART, "n.example.com.")
    window = page(night)
    rows_until(window, 1)
    window.press("j")
    assert window.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert float(window.script("return parseFloat(getComputedStyle(document.activeElement).outlineWidth)")) >= 2


# Hostile names


def test_hostile_names_are_text_and_nothing_else(page):
    night = Night()
    for name in (HOSTILE, longest()):
        night.forbidden(CART, name)
    window = page(night)
    rows_until(window, 2)
    scripts = window.count("script")
    names = window.texts("#lookups .name")
    assert len(names) == 2
    assert max(map(len, names)) >= 253
    assert any("<script>alert" in name for name in names)
    assert not any(re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", name) for name in names)
    assert window.count("#lookups b, #lookups script") == 0
    for row in (1, 2):
        window.click(f"{ROWS}:nth-child({row}) .open")
        window.until("document.querySelector('#lookup[open] .path svg')")
        assert window.count("#lookup b, #lookup script") == 0
        assert (
            window.script("const d = document.querySelector('#lookup'); return d.scrollWidth <= d.clientWidth") is True
        )
        window.press("Escape")
        window.until("!document.querySelector('#lookup').open")
    assert window.count("script") == scripts
    assert window.script("return document.documentElement.scrollWidth <= innerWidth") is True


def test_no_text_can_become_markup_even_if_a_script_of_the_page_tried(page):
    window = page(Night())
    assert "TrustedHTML" in window.script(
        "try { document.body.innerHTML = '<b>x</b>'; return '' } catch (e) { return String(e) }"
    )
    window.complaints()


def test_nothing_is_loaded_from_elsewhere(page):
    window = page(bad_night())
    rows_until(window, 10)
    origin = window.script("return location.origin")
    loaded = window.script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert loaded
    assert all(name.startswith(f"{origin}/page/") for name in loaded)


# Names


def test_without_leave_for_names_the_page_has_words_for_them():
    with shown(bad_night("redacted")) as address:
        paths = ("page/state", "page/lookups", "page/lookup?serial=1", "page/lookup?serial=300")
        answers = [read(f"{address}{path}") for path in paths]
    assert "redacted-" in answers[1]
    for answer in answers:
        assert not re.search(r"redis|stock\.shop|example\.(com|org|net)", answer)
    assert json.loads(answers[0])["Names"] == "redacted"


def test_words_for_names_are_said_to_be_words(page):
    window = page(bad_night("redacted"))
    rows_until(window, 10)
    assert "Names of lookups are replaced by words" in window.text("#lookups-hint")
    assert window.text("#lookups .name").startswith("redacted-")


def test_a_line_of_a_kept_problem_is_what_the_log_has_but_for_its_messages():
    night = Night()
    line = night.line("n.example.com.")
    night.fill(line, 1)
    (kept,) = night.watcher.memory.newest(None, 1)
    assert msgspec.to_builtins(kept.line) == msgspec.to_builtins(line)
