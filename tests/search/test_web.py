"""The web page, in a real browser and against hostile requests."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from tests.command_line import CommandLine
from tests.search.conftest import HELD_OUT, HOSTILE, Gallery, Server
from tests.search.dataset import encoded, jpeg, write_shard
from tests.waiting import HANG_SECONDS


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """A gallery of this module's own, because `server` adds shards to it."""
    return Gallery(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(gallery: Gallery) -> Iterator[Server]:
    """The page over the gallery, over a copy of a picture 1,200 times, and over a picture that is gone."""
    small = jpeg(HELD_OUT[0], 1, 64)
    write_shard(gallery.input / "many.parquet", [f"number {row}" for row in range(1200)], [small] * 1200)
    write_shard(
        gallery.input / "hostile.parquet", [HOSTILE] * 2, [jpeg(HELD_OUT[7], 2)] * 2, width=[7777] * 2
    )
    write_shard(gallery.input / "gone.parquet", ["it is gone"], [jpeg(HELD_OUT[8], 3)], width=[8888])
    gallery.call("embed", gallery.input, gallery.output)
    (gallery.input / "gone.parquet").unlink()
    call = CommandLine(gallery.call.folder)
    call.env |= {"BORING_MAX_IMAGE_BYTES": str(2**20)}
    running = Server(call, "serve", "--output", gallery.output, "--input", gallery.input)
    yield running
    running.stop()


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    """A page that fails its test if a script went wrong, a policy was broken, or another host was asked."""
    page = browser.new_page()
    page.set_default_timeout(1000 * HANG_SECONDS)
    trouble: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda said: trouble.append(said.text) if "Content Security" in said.text else None)
    page.on("request", lambda asked: None if asked.url.startswith(server.url) else trouble.append(asked.url))
    page.goto(server.url)
    yield page
    page.close()
    assert trouble == []


def cards(page: Any) -> list[str]:
    """The captions of all results that are loaded."""
    page.wait_for_selector(".card")
    return page.locator(".card .caption").all_inner_texts()


def search(page: Any, text: str) -> list[str]:
    page.fill("#text", text)
    page.press("#text", "Enter")
    page.wait_for_function("() => [...document.querySelectorAll('.score')].some((each) => each.textContent)")
    return cards(page)


def test_the_page_starts_with_a_sample_and_finds_by_text(page: Any) -> None:
    assert len(set(cards(page))) > 1, "a sample of the whole dataset"
    wanted = HELD_OUT[3].caption
    assert search(page, wanted)[0] == wanted
    page.wait_for_function("() => document.querySelector('.card img').naturalWidth > 0")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.input_value("#text") == wanted
    assert cards(page)[0] == wanted, "a link is a search"


def test_results_load_as_one_scrolls(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/?filter=partition:%3D:many")
    assert len(cards(page)) < 1200
    while (count := page.locator(".card").count()) < 1200:
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.wait_for_function(f"() => document.querySelectorAll('.card').length > {count}")
    assert len(set(cards(page))) == 1200, "each picture once"


def test_a_picture_opens_and_leads_to_more_and_less_like_it(page: Any) -> None:
    captions = search(page, HELD_OUT[-1].caption)  # it is far from the picture that is there 1,200 times
    page.locator(".card").nth(2).click()
    page.wait_for_function("() => document.getElementById('large').naturalWidth > 0")
    assert page.inner_text("#caption") == captions[2]
    assert "00" in page.inner_text("#facts")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#caption") == captions[3]
    assert len(set(captions[:5])) == 5
    page.click("#only")
    page.wait_for_url("**row%3A1**")
    page.wait_for_function(
        f"() => document.querySelector('.card .caption')?.textContent === {json.dumps(captions[3])}"
    )
    page.locator(".card").nth(1).click()
    page.click("#less")
    page.wait_for_selector(".chip.minus")
    assert cards(page)


def test_a_chosen_and_a_dropped_picture_search(page: Any, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(jpeg(HELD_OUT[3], 99, 200))
    page.set_input_files("#picture", picture)
    page.wait_for_url("**picture**")
    assert cards(page)[0] == HELD_OUT[3].caption

    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
        const options = { dataTransfer: data, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("drop", options));
    }"""
    before = page.url
    page.evaluate(drop, list(jpeg(HELD_OUT[20], 98, 200)))
    page.wait_for_url(lambda url: url != before)
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert cards(page)[0] == HELD_OUT[20].caption, "the link holds the picture's embedding"
    page.evaluate(drop, list(b"<svg onload=alert(1)>"))
    page.locator("#message.error", has_text="cannot be read").wait_for()


def test_filters_are_chips_with_counted_values(page: Any) -> None:
    cards(page)
    page.click("#add-filter")
    page.select_option("#column", "partition")
    page.locator("#values button", has_text="many").wait_for()
    assert "1,200" in page.inner_text("#values")
    page.locator("#values button", has_text=re.compile("^00001")).click()
    page.wait_for_url("**filter=partition**")
    assert page.locator("#filters .chip").count() == 2, "the filter, and a button for another"
    page.click("#add-filter")
    page.select_option("#column", "caption")
    page.fill("#value", "nowhere to be found")
    page.click("#choose .primary")
    page.wait_for_selector("#empty:not([hidden])")
    assert "Remove one" in page.inner_text("#empty")


def test_the_page_fits_a_phone_in_dark_mode(browser: Any, server: Server) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.set_default_timeout(120_000)
    page.goto(f"{server.url}/?q=two+red+circles")
    cards(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    red, green, blue = map(
        int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    )
    assert max(red, green, blue) < 64
    page.locator(".card").first.click()
    page.wait_for_selector("#detail[open]")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_foreign_text_stays_text(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/?q=%22%3E%3Cscript%3Edocument.title=1%3C/script%3E&filter=meta_width:%3D:7777")
    assert cards(page) == [HOSTILE] * 2
    page.locator(".card").first.click()
    assert page.inner_text("#caption") == HOSTILE
    assert page.title() != "1"
    assert page.locator(".results script, #detail script, #caption img").count() == 0


def test_a_picture_without_its_source_has_a_placeholder(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/?q=red&filter=meta_width:%3D:8888")
    assert cards(page) == ["it is gone"]
    source = page.get_attribute(".results img", "src")
    status, body, headers = server.ask(source)
    assert (status, headers["Content-Type"]) == (404, "image/svg+xml")
    assert body.startswith(b"<svg")


def test_the_results_of_the_page_and_its_downloads(server: Server, gallery: Gallery) -> None:
    status, body, _ = server.ask("/api/search?q=two+red+circles&n=3")
    assert status == 200
    printed = gallery.call(
        "search", "two red circles", "--output", gallery.output, "--limit", 3, "--json"
    ).stdout
    keys = [hit["key"] for hit in json.loads(printed)]
    assert [hit["key"] for hit in json.loads(body)] == keys
    tables = {
        kind: server.ask(f"/api/download?q=two+red+circles&n=3&format={kind}")[1]
        for kind in ("csv", "json", "parquet")
    }
    assert pl.read_csv(tables["csv"], infer_schema=False)["key"].to_list() == keys
    assert pl.read_parquet(tables["parquet"])["key"].to_list() == keys
    assert [hit["key"] for hit in json.loads(tables["json"])] == keys


def test_a_lost_server_is_reported(gallery: Gallery, browser: Any) -> None:
    mine = Server(gallery.call, "serve", "--output", gallery.output, "--input", gallery.input, "--no-update")
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(mine.url)
    cards(page)
    mine.stop()
    page.fill("#text", "red")
    page.press("#text", "Enter")
    page.locator("#message.error", has_text="boring-assets serve").wait_for()
    page.close()


def test_requests_from_other_sites_are_refused(server: Server, gallery: Gallery) -> None:
    assert server.ask("/", Host="evil.example")[0] == 400  # DNS rebinding
    assert (
        server.ask("/api/picture?partition=00000&key=000000000&row=0", Host=f"evil.example:{server.port}")[0]
        == 400
    )
    assert server.ask("/", Host="localhost")[0] == 200
    picture = gallery.picture
    assert server.ask("/api/embed", "POST", picture, Origin="https://evil.example")[0] == 403
    assert server.ask("/api/embed", "POST", picture, Origin=server.url)[0] == 200
    assert server.ask("/api/embed", "POST", picture)[0] == 200
    _, _, headers = server.ask("/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_hostile_requests_get_an_error_and_the_server_goes_on(server: Server) -> None:
    assert server.ask("/api/embed", "POST", b"\0" * (2**20 + 1))[0] == 413
    bomb = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    for body in (bomb, b"", b"GIF89a", jpeg(HELD_OUT[0], 1)[:100]):
        status, said, _ = server.ask("/api/embed", "POST", body)
        assert status == 415
        assert json.loads(said).keys() == {"error"}
    for query in (
        "n=0",
        "n=99999999",
        "offset=-1",
        "n=x",
        "q=" + "x" * 2000,
        "term=picture:1:nope",
        "term=picture:nan:AAAA",
        "term=row:1:a':1",
        "term=row:1:a:-1",
        "term=sql:1:x",
        "filter=nothing",
        "filter=secret:=:1",
        "&".join(["q=a"] * 100),
        "term=text:1:red&term=text:-1:red",
    ):
        assert server.ask(f"/api/search?{query}")[0] == 400, query
    for query in (
        "partition=../../etc&key=passwd&row=0",
        "partition=00000&key=..%2F..%2Fx&row=0",
        "partition=00000&row=-1",
        "x=y",
    ):
        assert server.ask(f"/api/picture?{query}")[0] == 404, query
    for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/static//etc/passwd"):
        assert server.ask(path)[0] == 404, path
    assert server.ask("/")[0] == 200


def test_the_server_listens_on_loopback_by_default(server: Server) -> None:
    import psutil

    listening = [
        one
        for one in psutil.net_connections("tcp")
        if one.status == "LISTEN" and one.laddr.port == server.port
    ]
    assert [one.laddr.ip for one in listening] == ["127.0.0.1"]
