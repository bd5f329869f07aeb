"""Pages: what is near the question is shown, and what may be opened, how large and how long."""

import asyncio
import gzip
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_calls import FILLER, HERE, HTML, context, page, refused, told

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, ProviderError, ToolError
from arpo.search.extraction import reader
from arpo.tools import page as page_module
from arpo.tools.config import ToolConfig, build_tools
from arpo.tools.page import PageTool, extract, nearest
from arpo.tools.web.fetch import Fetched, Fetcher
from arpo.worker_process import WorkerPool
from localhost import Asked, Reply, serving
from pages_for_tests import pdf

# --- what is shown


async def test_the_part_near_the_question_is_shown() -> None:
    with serving(lambda _: Reply(HTML, kind="text/html; charset=utf-8")) as site:
        done = await page(chars=600)({"url": site.url}, context())
        assert done.status is CallStatus.OK and len(done.text) < 700
        assert (
            "Rimac" in done.text.splitlines()[0] and "springs from the Ticlio" in done.text and "Login" not in done.text
        )
        other = await told(page(chars=600), site.url, question="remark 11")
        assert "Remark 11" in other and "Ticlio" not in other


async def test_a_page_that_fits_is_given_whole_and_an_empty_one_says_so() -> None:
    short = (
        "<html><head><title>T</title></head><body><article><p>Lima has ten million people.</p></article></body></html>"
    )
    with serving(lambda asked: Reply(short if asked.path == "/a" else "<html></html>", kind="text/html")) as site:
        assert (await told(page(), f"{site.url}/a")).endswith("Lima has ten million people.")
        done = await page()({"url": f"{site.url}/b"}, context())
        assert done.empty and "nothing that can be read" in done.text


async def test_pdf_text_json_and_what_cannot_be_read() -> None:
    pages = {
        "/a.pdf": Reply(pdf("The Rimac springs at Ticlio.", "Rivers"), kind="application/pdf"),
        "/b": Reply(pdf("Sent as nothing in particular."), kind="application/octet-stream"),
        "/c": Reply("plain words", kind="text/plain"),
        "/d": Reply({"capital": "Lima"}),
        "/e": Reply("Perú".encode("latin-1"), kind="text/plain; charset=latin-1"),
        "/f": Reply(b"\x89PNG", kind="image/png"),
        "/g": Reply(b"%PDF-1.4 broken", kind="application/pdf"),
    }
    with serving(lambda asked: pages[asked.path]) as site:
        assert await told(page(), f"{site.url}/a.pdf") == "Rivers\nThe Rimac springs at Ticlio."
        assert "Sent as nothing" in await told(page(), f"{site.url}/b")
        assert "plain words" in await told(page(), f"{site.url}/c") and "Lima" in await told(page(), f"{site.url}/d")
        assert "Perú" in await told(page(), f"{site.url}/e")
        assert "image/png" in await refused(f"{site.url}/f")
        assert "not a PDF" in await refused(f"{site.url}/g")


@pytest.mark.parametrize("charset", ["nobody-knows", "undefined", "idna", "punycode", "zlib_codec", "unicode_escape"])
async def test_a_charset_that_no_page_is_written_in_is_not_used(charset: str) -> None:
    """Some raise what is no ToolError, and punycode would take hours."""
    content = rb"plain \x41" + b"a" * 3000 + b"-" + b"a" * 2_000_000
    assert (await extract(Fetched("http://h/", "text/plain", charset, content))).text == content.decode()


async def test_pages_that_take_a_days_work_are_given_up_and_hold_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """300,000 options of a `<select>`, and two kilobytes that unpack to a page of text that never ends."""
    await extract(Fetched("http://h/", "text/html", "", HTML.encode()))  # the processes are there
    monkeypatch.setattr(page_module, "READ_S", 2.0)
    options = ("<html><body><select>" + "<option>a" * 300_000).encode()
    for kind, content in (("text/html", options), ("application/pdf", pdf("a) Tj (" * 500_000))):
        reading = asyncio.create_task(extract(Fetched("http://h/", kind, "", content)))
        rounds = 0
        while not reading.done():
            await asyncio.sleep(0.01)
            rounds += 1
        with pytest.raises(ToolError, match="more than 2 s"):
            reading.result()
        assert rounds > 10, "the event loop goes on"
    assert (await extract(Fetched("http://h/", "text/html", "", HTML.encode()))).text


async def test_a_page_that_takes_too_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    small = WorkerPool("arpo.search.extraction:html_to_text", memory_bytes=400 << 20)
    monkeypatch.setattr(page_module, "reader", lambda function: small)
    with pytest.raises(ToolError, match="MiB to be read"):
        await extract(Fetched("http://h/", "text/html", "", b"<html><body>" + b"<i>a</i>" * 600_000))
    assert (await extract(Fetched("http://h/", "text/html", "", HTML.encode()))).text
    small.close()


async def test_a_page_of_chunks_of_one_byte_leaves_the_loop_to_others() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"1\r\na\r\n" * 2_000 + b"0\r\n\r\n")
        writer.close()

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    turns = 0
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    counting = asyncio.create_task(count())
    try:
        fetched = await Fetcher(robots=False, allow_private=HERE).fetch(
            f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        )
    finally:
        counting.cancel()
        server.close()
    assert fetched.content == b"a" * 2_000 and turns >= 2_000


async def test_a_page_is_fetched_once_for_several_questions() -> None:
    with serving(lambda _: Reply(HTML, kind="text/html")) as site:
        tool = page(chars=600)
        for question in ("spring", "remark 3", "number 4"):
            await told(tool, site.url, question=question)
        assert len(site.asked) == 1 and site.asked[0].headers["user-agent"] == "arpo"
        assert site.asked[0].headers["host"] == f"127.0.0.1:{site.port}"


def test_a_call_without_a_question_is_completed_with_the_tasks() -> None:
    assert page().complete({"url": "u"}, context("Why?")) == {"url": "u", "question": "Why?"}
    assert page().complete({"url": "u", "question": "How?"}, context("Why?")) == {"url": "u", "question": "How?"}


@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=300), max_size=20),
    st.text(max_size=30),
    st.integers(100, 900),
)
def test_what_is_shown_is_never_longer_than_asked(paragraphs: list[str], question: str, chars: int) -> None:
    text = "\n".join(paragraphs)
    shown = nearest(text, question, chars)
    assert len(shown) <= chars
    if len(" ".join(text.split())) <= chars:
        assert shown == " ".join(text.split())


# --- the summariser


async def test_a_summariser_is_told_the_question_and_the_page() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/v1/chat/completions":
            return Reply({"choices": [{"message": {"role": "assistant", "content": " It springs at Ticlio. "}}]})
        return Reply(HTML, kind="text/html")

    with serving(answer) as site:
        tool = page(summariser={"url": f"{site.url}/v1", "model": "small", "page_chars": 900})
        assert (await told(tool, site.url)).splitlines()[1:] == ["It springs at Ticlio."]
        asked = site.asked[-1].json
    assert asked["model"] == "small" and "Where does the Rimac spring?" in asked["messages"][1]["content"]
    assert "springs from the Ticlio" in asked["messages"][1]["content"] and len(asked["messages"][1]["content"]) < 1_100


@pytest.mark.parametrize(
    ("reply", "retriable"),
    [
        (Reply({"error": {"message": "x"}}, status=500), True),
        (Reply({"error": "x"}, status=401), False),
        (Reply({"choices": []}), True),
    ],
)
async def test_a_summariser_that_fails_is_not_the_models_fault(reply: Reply, retriable: bool) -> None:
    answer = lambda asked: reply if asked.path.startswith("/v1") else Reply(HTML, kind="text/html")  # noqa: E731
    with serving(answer) as site, pytest.raises(ProviderError) as caught:
        await told(page(summariser={"url": f"{site.url}/v1", "model": "small"}), site.url)
    assert caught.value.retriable is retriable and caught.value.provider == "summariser"


# --- limits


async def test_limits_of_size_time_and_redirects() -> None:
    packed = gzip.compress(b"<p>" + b"a" * (8 << 20))
    pages = {
        "/large": Reply(b"x" * 200_000, kind="text/plain"),
        "/claims": Reply(b"x", kind="text/plain", length=10**12),
        "/bomb": Reply(packed, kind="text/html", headers={"Content-Encoding": "gzip"}),
        "/brotli": Reply(b"x", kind="text/html", headers={"Content-Encoding": "br"}),
        "/slow": Reply(b"x", wait_s=3),
        "/drip": Reply(b"x" * 1000, kind="text/plain", drip_s=0.05),
        "/cut": Reply(b"<p>x", kind="text/html", length=1000),
        "/gone": Reply("no", status=404),
    }

    def answer(asked: Asked) -> Reply:
        if asked.path.startswith("/r"):
            number = int(asked.path[2:])
            return Reply(status=302, headers={"Location": f"/r{number - 1}" if number else "/end"})
        return pages.get(asked.path) or Reply("arrived", kind="text/plain")

    with serving(answer) as site:
        for path, word in [
            ("/large", "more than"),
            ("/claims", "more than"),
            ("/bomb", "more than"),
            ("/brotli", "packed"),
            ("/cut", "breaks off"),
            ("/gone", "404"),
            ("/r9", "redirects"),
        ]:
            assert word in await refused(site.url + path, most_mb=0.1)
        for path in ("/slow", "/drip"):
            assert "longer than 0.3 s" in await refused(site.url + path, timeout_s=0.3)
        assert "arrived" in await told(page(), f"{site.url}/r4")
    assert "cannot be reached" in await refused("http://127.0.0.1:9/")


# --- robots.txt


async def test_robots_txt_is_asked_once_and_respected() -> None:
    rules = (
        "User-agent: *\nDisallow: /private/\nAllow: /private/open\nDisallow: /*.cgi$\n\n"
        "User-agent: other\nDisallow: /\n"
    )
    with serving(lambda asked: Reply(rules if asked.path == "/robots.txt" else "words", kind="text/plain")) as site:
        tool = page(robots=True)
        for path in ("/a", "/private/open/x"):
            assert "words" in await told(tool, site.url + path)
        for path in ("/private/x", "/run.cgi"):
            with pytest.raises(ToolError, match="does not want programs"):
                await told(tool, site.url + path)
        assert [asked.path for asked in site.asked].count("/robots.txt") == 1
        assert "/private/x" not in [asked.path for asked in site.asked]
        assert "words" in await told(page(), f"{site.url}/private/x")


async def test_robots_txt_that_is_not_there_allows_and_one_that_fails_forbids() -> None:
    for status, allowed in ((404, True), (401, True), (503, False)):
        with serving(
            lambda asked, status=status: Reply("w", status=status if "robots" in asked.path else 200, kind="text/plain")
        ) as site:  # type: ignore[misc]
            if allowed:
                assert "w" in await told(page(robots=True), site.url)
            else:
                assert "robots.txt" in await refused(site.url, robots=True)


async def test_robots_txt_is_asked_behind_a_redirect_too() -> None:
    def elsewhere(asked: Asked) -> Reply:
        return Reply(status=404) if "robots" in asked.path else Reply(status=301, headers={"Location": closed.url})

    rules = "User-agent: *\nDisallow: /"
    with (
        serving(lambda asked: Reply(rules if "robots" in asked.path else "secret", kind="text/plain")) as closed,
        serving(elsewhere) as site,
    ):
        assert "does not want programs" in await refused(site.url, robots=True)


# --- in a run


async def test_what_cannot_work_is_told_before_the_run() -> None:
    for options, word in [
        ({"chars": 3}, "at least 100"),
        ({"allow_private": ["localhost"]}, "allow_private"),
        ({"summariser": {"url": "x", "model": "m"}}, r"summariser\.url"),
        ({"robot": False}, "did you mean 'robots'"),
    ]:
        with pytest.raises(ConfigError, match=word):
            build_tools([ToolConfig(use="page", options=options)])
    with pytest.raises(ConfigError, match="NOT_SET_ANYWHERE"):
        page(summariser={"url": "http://x", "model": "m", "key_env": "NOT_SET_ANYWHERE"}).ready()
    page().ready()
    assert (await PageTool()({"url": " "}, context())).status is CallStatus.REFUSED


async def test_many_pages_at_once() -> None:
    with serving(lambda asked: Reply(f"words of {asked.path}", kind="text/plain", wait_s=0.05)) as site:
        tool = page()
        done = await asyncio.gather(*(told(tool, f"{site.url}/{number}") for number in range(30)))
    assert all(f"words of /{number}" in text for number, text in enumerate(done))


async def test_a_page_is_kept_under_the_question_it_was_opened_for(tmp_path: Path) -> None:
    """Calls without a question depend on their task's: two tasks get two results, the same task one from the cache."""
    from arpo.tools.config import ToolsConfig
    from arpo.tools.gateway import build_gateway

    with serving(lambda _: Reply(HTML, kind="text/html")) as site:
        options = {"allow_private": HERE, "robots": False, "chars": 600}
        config = ToolsConfig.model_validate(
            {"offered": [{"use": "page", "options": options}], "cache": {"file": str(tmp_path / "tools.sqlite")}}
        )
        tools = {tool.name: tool for tool in build_tools(config.offered)}
        tool_gateway = build_gateway(config, [list(tools.values())])
        call = Call(name="page", arguments={"url": site.url})
        first = await tool_gateway.call(tools, call, context("Where does the Rimac spring?"))
        other = await tool_gateway.call(tools, call, context("Remark 11"))
        again = await tool_gateway.call(tools, call, context("Where does the Rimac spring?"))
    assert (
        "Ticlio" in first.text
        and "Ticlio" not in other.text
        and again.text == first.text
        and again.cached
        and not other.cached
    )


def test_a_page_summarised_otherwise_is_another_result() -> None:
    ways = [{}, {"words": 50}, {"page_chars": 5000}, {"model": "other"}, {"url": "http://127.0.0.1:2/v1"}]
    tools = [PageTool(summariser={"url": "http://127.0.0.1:1/v1", "model": "m", **way}) for way in ways]
    assert len({tool.version for tool in tools}) == len(ways)


@pytest.mark.parametrize("kind", ["text/plain", "text/csv"])
async def test_a_long_text_is_searched_elsewhere(kind: str) -> None:
    """Ranking megabytes of words in this process would hold up its loop for seconds."""
    text = "a,b. what\n" * 60_000 + "The Rimac springs from the Ticlio.\n" + "c,d. how\n" * 60_000
    reader("arpo.tools.page:nearest").start()
    with serving(lambda asked: Reply(text.encode(), kind=kind)) as site:
        began = time.thread_time()
        shown = await told(page(), f"{site.url}/long")
        assert "springs from the Ticlio" in shown and len(shown) < 3_000
    assert time.thread_time() - began < 2


async def test_a_title_is_short() -> None:
    content = f"<html><head><title>{'long ' * 100_000}</title></head><body><p>{FILLER}</p></body></html>"
    with serving(lambda asked: Reply(content, kind="text/html")) as site:
        assert len(await told(page(), f"{site.url}/")) < 3_000
