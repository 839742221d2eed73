"""The web page, in a real browser and against hostile requests."""

import http.client
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.command_line import CommandLine
from tests.search.conftest import HELD_OUT, HOSTILE, Gallery
from tests.search.dataset import encoded, jpeg, write_shard
from tests.waiting import HANG_SECONDS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Server:
    """A running `boring-assets serve`."""

    def __init__(self, call: CommandLine, *arguments: object) -> None:
        self._process = call.start("serve", "--port", 0, *arguments, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        assert found, line
        self.host, self.port = found[1], int(found[2])

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, bytes, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=HANG_SECONDS)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            connection.close()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=HANG_SECONDS)


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
    running = Server(call, "--output", gallery.output, "--input", gallery.input)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


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


def captions(page: Any) -> list[str]:
    return page.locator(".caption").all_inner_texts()


def loaded(page: Any) -> int:
    """How many pictures the browser shows, once it has loaded all that are in view."""
    page.wait_for_function("() => [...document.images].slice(0, 4).every(image => image.complete)")
    return page.evaluate("[...document.images].filter(image => image.naturalWidth > 0).length")


def test_search_by_text_with_pages_and_similar_ones(page: Any) -> None:
    wanted = HELD_OUT[3].caption
    page.fill("input[name=q]", wanted)
    page.press("input[name=q]", "Enter")
    page.wait_for_selector(".results")
    first = captions(page)
    assert first[0] == wanted
    assert len(first) == 24
    assert loaded(page) >= 4
    page.click("text=Next page")
    page.wait_for_url("**page=2**")
    second = captions(page)
    assert len(second) == 24
    assert page.get_attribute(".results", "start") == "25"
    page.click("text=Previous page")
    page.wait_for_url("**page=1**")
    assert captions(page) == first
    page.locator(".like").nth(5).click()
    page.wait_for_url("**row=**")
    assert captions(page)[0] == first[5]


def test_search_by_a_chosen_and_by_a_dropped_picture(page: Any, gallery: Gallery, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(jpeg(HELD_OUT[3], 99, 200))
    page.set_input_files("#picture", picture)
    page.wait_for_selector(".results")
    assert captions(page)[0] == HELD_OUT[3].caption

    drop = """(bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
        const options = { dataTransfer: data, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent("drop", options));
    }"""
    before = page.url
    page.evaluate(drop, list(jpeg(HELD_OUT[20], 98, 200)))
    page.wait_for_url(lambda url: url != before)
    page.wait_for_selector(".results")
    assert captions(page)[0] == HELD_OUT[20].caption

    page.evaluate(drop, list(b"<svg onload=alert(1)>"))
    page.locator("#message", has_text="no picture").wait_for()


def test_filters_empty_results_and_wrong_ones(page: Any) -> None:
    page.click("summary")
    page.fill("input[name=q]", "red circle")
    page.select_option("select[name=column]", "caption")
    page.fill("input[name=value]", "CIRCLE")
    page.click("button")
    page.wait_for_selector(".results")
    assert captions(page)
    assert all("circle" in caption for caption in captions(page))
    page.locator("input[name=value]").first.fill("nowhere to be found")
    page.click("button")
    page.wait_for_selector(".empty")
    assert page.inner_text(".empty") == "No picture fits."
    page.locator("select[name=column]").first.select_option("meta_width")
    page.locator("select[name=operator]").first.select_option(">=")
    page.click("button")
    page.locator("#message", has_text="is a number").wait_for()


def test_a_thousand_results(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/?q=red&n=1000&column=partition&operator=%3D&value=many")
    assert len(captions(page)) == 1000
    assert len(set(captions(page))) == 1000
    page.locator("li").nth(999).scroll_into_view_if_needed()
    page.wait_for_function("() => document.images[999].complete && document.images[999].naturalWidth > 0")
    page.click("text=Next page")
    page.wait_for_url("**page=2**")
    assert len(captions(page)) == 200
    assert not page.locator("text=Next page").count()


def test_foreign_text_stays_text(page: Any, server: Server) -> None:
    page.goto(
        f"{server.url}/?q=%22%3E%3Cscript%3Edocument.title=1%3C/script%3E&column=meta_width&operator=%3D&value=7777"
    )
    assert captions(page) == [HOSTILE] * 2
    assert page.title() != "1"
    assert page.locator(".results script, .results p img").count() == 0
    assert page.input_value("input[name=q]") == '"><script>document.title=1</script>'


def test_a_picture_whose_source_is_gone_has_a_placeholder(page: Any, server: Server) -> None:
    page.goto(f"{server.url}/?q=red&column=meta_width&operator=%3D&value=8888")
    assert captions(page) == ["it is gone"]
    assert loaded(page) == 1
    source = page.get_attribute(".results img", "src")
    status, body, headers = server.ask(source)
    assert (status, headers["Content-Type"]) == (404, "image/svg+xml")
    assert body.startswith(b"<svg")


def test_the_json_of_the_page(server: Server, gallery: Gallery) -> None:
    status, body, _ = server.ask("/search.json?q=two+red+circles&n=3")
    assert status == 200
    told = gallery.call(
        "search", "two red circles", "--output", gallery.output, "--limit", 3, "--json"
    ).stdout
    assert [hit["key"] for hit in json.loads(body)] == [hit["key"] for hit in json.loads(told)]


def test_strangers_are_refused(server: Server, gallery: Gallery) -> None:
    assert server.ask("/", Host="evil.example")[0] == 400  # DNS rebinding
    assert (
        server.ask("/thumbnail?partition=00000&key=000000000", Host=f"evil.example:{server.port}")[0] == 400
    )
    assert server.ask("/", Host="localhost")[0] == 200
    picture = gallery.picture
    assert server.ask("/picture", "POST", picture, Origin="https://evil.example")[0] == 403
    assert server.ask("/picture", "POST", picture, Origin=server.url)[0] == 200
    assert server.ask("/picture", "POST", picture)[0] == 200
    _, _, headers = server.ask("/")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_hostile_requests_are_answered_and_cost_nothing_else(server: Server) -> None:
    assert server.ask("/picture", "POST", b"\0" * (2**20 + 1))[0] == 413
    bomb = encoded(Image.new("1", (30_000, 30_000)), "PNG")
    for body in (bomb, b"", b"GIF89a", jpeg(HELD_OUT[0], 1)[:100]):
        status, said, _ = server.ask("/picture", "POST", body)
        assert status == 415
        assert json.loads(said).keys() == {"error"}
    for query in (
        "n=0",
        "n=99999999",
        "page=0",
        "page=x",
        "q=" + "x" * 2000,
        "picture=nope",
        "partition=a'&row=1",
    ):
        assert server.ask(f"/?{query}")[0] == 400, query
    for query in (
        "partition=../../etc&key=passwd",
        "partition=00000&key=..%2F..%2Fx",
        "partition=00000&row=-1",
        "x=y",
    ):
        assert server.ask(f"/thumbnail?{query}")[0] == 404, query
    for path in ("/static/../web.py", "/static/%2e%2e/web.py", "/static//etc/passwd"):
        assert server.ask(path)[0] == 404, path
    assert server.ask("/")[0] == 200


def test_it_listens_on_loopback_alone_unless_told_otherwise(server: Server) -> None:
    import psutil

    listening = [
        one
        for one in psutil.net_connections("tcp")
        if one.status == "LISTEN" and one.laddr.port == server.port
    ]
    assert [one.laddr.ip for one in listening] == ["127.0.0.1"]
