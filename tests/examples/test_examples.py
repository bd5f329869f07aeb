"""The worked examples, each against a server on this machine that speaks the other side's protocol."""

import asyncio
import hashlib
import hmac
import html
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from agent_world import deployed, served, until
from arpo.agent.deployed import DeployedAgent
from arpo.core.tree import CallStatus
from arpo.errors import ProviderError
from arpo.http.serving import listening_at
from arpo.recipe.load import load_recipe
from arpo.tools import CallContext
from arpo.tools.config import ToolConfig, build_tools
from localhost import Asked, Reply, serving
from small_world import task

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_has_its_recipe_and_its_page(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    assert load_recipe(path.with_suffix(".yaml")).name == path.stem.replace("_", "-")
    page = EXAMPLES.parent / "docs" / f"example-{path.stem.removesuffix('_bot')}.md"
    assert f"examples/{path.name}" in page.read_text() and page.name in path.read_text()


# --- Slack


@contextmanager
def running(app: Any) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5))
    with listening_at("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


class Slack:
    """What Slack does: signs what it sends, and takes messages."""

    def __init__(self, bot: str) -> None:
        self.bot, self.numbers = bot, iter(range(1000))

    def send(self, body: dict[str, Any], *, secret: str = "signing-secret", age_s: int = 0) -> httpx.Response:
        raw, at = json.dumps(body).encode(), str(int(time.time()) - age_s)
        signature = hmac.new(secret.encode(), f"v0:{at}:".encode() + raw, hashlib.sha256).hexdigest()
        headers = {"X-Slack-Request-Timestamp": at, "X-Slack-Signature": f"v0={signature}"}
        return httpx.post(f"{self.bot}/slack/events", content=raw, headers=headers)

    def mention(self, text: str, event_id: str = "", **event: str) -> httpx.Response:
        own = {"type": "app_mention", "user": "U1", "text": f"<@U0BOT> {text}", "channel": "C1", "ts": "1.1", **event}
        event_id = event_id or f"Ev{next(self.numbers)}"
        return self.send({"type": "event_callback", "event_id": event_id, "event": own})


def test_the_slack_bot_answers_mentions_in_their_thread(tokenizer: Any) -> None:
    from slack_bot import SlackBot

    def play(prompt: Any, params: Any) -> str:
        text = tokenizer.decode(list(prompt))
        return f"<think>So.</think><answer>{text.count('Question')} & {'<3' if '<3' in text else 'no'}</answer>"

    def api(asked: Asked) -> Reply:
        known = asked.headers["authorization"] == "Bearer xoxb-token" and asked.path == "/api/chat.postMessage"
        return Reply({"ok": True, "ts": "2.0"} if known else {"ok": False, "error": "invalid_auth"})

    with serving(api) as site:
        bot = SlackBot(deployed(tokenizer, play), "signing-secret", "xoxb-token", f"{site.url}/api/")
        with running(bot.app) as url:
            slack = Slack(url)
            hello = {"type": "url_verification", "token": "x", "challenge": "the-challenge"}
            assert slack.send(hello).json() == {"challenge": "the-challenge"}
            assert slack.send(hello, secret="another").status_code == 401
            assert slack.send(hello, age_s=600).status_code == 401
            assert httpx.post(f"{url}/slack/events", json=hello).status_code == 401

            def told(count: int) -> list[Any]:
                until(lambda: len(site.asked) == count)
                return [(asked.json["thread_ts"], html.unescape(asked.json["text"])) for asked in site.asked]

            assert slack.mention("Question one, I &lt;3 it", "Ev-first").status_code == 200
            assert told(1) == [("1.1", "1 & <3")] and "&lt;3" in site.asked[0].json["text"]
            assert slack.mention("Question one, I &lt;3 it", "Ev-first").status_code == 200, "sent again"
            slack.mention("Question two", thread_ts="1.1", ts="1.2")
            assert told(2)[-1] == ("1.1", "2 & <3"), "the thread is remembered"
            slack.mention("Question three", ts="9.9")
            assert told(3)[-1] == ("9.9", "1 & no"), "another thread is another conversation"
            slack.mention("Question " + "and more " * 2000, ts="8.8")
            assert "I cannot answer that" in told(4)[-1][1]


# --- the tutor


def test_the_tutor_asks_checks_and_remembers(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its model is behind chat completions: those of `arpo serve`."""
    monkeypatch.delitem(sys.modules, "tutor", raising=False)
    import tutor

    def play(prompt: Any, params: Any) -> str:
        text = tokenizer.decode(list(prompt))
        last = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        results = re.findall(r"<result>(.*?)</result>", text.rpartition("<|im_start|>user\n")[2], re.DOTALL)
        if results:
            return f"<think>So.</think><answer>{results[-1]}</answer>"
        if last.startswith("an exercise"):
            return '<think>Sums.</think><exercise>{"topic": "sums", "level": 1}</exercise>'
        if last == "what was it?":
            [given] = re.findall(r"<\|im_start\|>assistant\n[^\d]*(\d+ \+ \d+)", text)[-1:]
            return f"<think>I remember.</think><answer>it was {given}</answer>"
        [given] = re.findall(r"(\d+ \+ \d+)", text)[-1:]
        asked = json.dumps({"exercise": given, "answer": last})
        return f"<think>I check.</think><check>{asked}</check>"

    lines: list[str] = []

    def read(prompt: str) -> str:
        given = re.search(r"(\d+) \+ (\d+)", " ".join(lines))
        right = str(int(given[1]) + int(given[2])) if given else ""
        return ["an exercise please", f"{right}.0", "5", "what was it?", ""][
            len([s for s in lines if s[:5] == "tutor"])
        ]

    with served(deployed(tokenizer, play, run={"name": "quickstart"})) as server:
        endpoint = f"engine.endpoint.url={server.url}/v1"
        agent = DeployedAgent.load(EXAMPLES / "tutor.yaml", overrides=[endpoint])

        async def lesson() -> None:
            async with agent:
                await tutor.lesson(agent, read, lines.append)

        asyncio.run(lesson())
    said = [line.removeprefix("tutor> ") for line in lines if line.startswith("tutor> ")]
    assert re.fullmatch(r"\d+ \+ \d+", said[0]) and said[1:3] == ["right", "wrong"]
    assert said[3] == f"it was {said[0]}"
    assert sum(line.startswith("  (check: ") for line in lines) == 2


def test_exercises_are_checked_by_their_value() -> None:
    from tutor import RANDOM, check, exercise

    RANDOM.seed(1)
    for topic in ("fractions", "percent", "sums"):
        for level in (1, 3, 9):
            assert check.function(exercise.function(topic, level), "x") == "wrong"
    assert check.function(r"\frac{1}{2} + \frac{1}{4}", "0.75") == "right"
    assert check.function(r"\frac{15}{100} \cdot 40", "6") == "right"
    assert check.function("6 + 20", "26") == "right" and check.function("6 + 20", "27") == "wrong"


# --- the research assistant

FEED = """<?xml version='1.0' encoding='UTF-8'?>
<feed xmlns:opensearch="http://a9.com/-/spec/opensearch/1.1/" xmlns:arxiv="http://arxiv.org/schemas/atom"
      xmlns="http://www.w3.org/2005/Atom">
  <id>https://arxiv.org/api/abc</id><title>arXiv Query</title><updated>2025-08-01T00:00:00Z</updated>
  <opensearch:totalResults>1</opensearch:totalResults>
  <entry>
    <id>http://arxiv.org/abs/2507.19849v1</id><title>Agentic Reinforced
      Policy Optimization</title>
    <published>2025-07-26T07:53:11Z</published><summary>  Trees of rollouts &amp; entropy.
    </summary>
    <author><name>Guanting Dong</name></author><author><name>Hangyu Mao</name></author>
    <arxiv:primary_category term="cs.LG"/><link href="https://arxiv.org/abs/2507.19849v1" rel="alternate"/>
  </entry>
</feed>"""
ARTICLES = """<?xml version="1.0" ?>
<!DOCTYPE PubmedArticleSet PUBLIC "-//NLM//DTD PubMedArticle, 1st January 2025//EN" "x.dtd">
<PubmedArticleSet><PubmedArticle><MedlineCitation Status="MEDLINE" Owner="NLM">
<PMID Version="1">31452104</PMID><Article PubModel="Print">
<Journal><JournalIssue CitedMedium="Internet"><PubDate><Year>2019</Year><Month>Aug</Month></PubDate></JournalIssue>
<Title>A journal</Title></Journal><ArticleTitle>Vitamin <i>D</i> and sleep.</ArticleTitle>
<Abstract><AbstractText Label="AIMS">We asked.</AbstractText><AbstractText Label="RESULTS">It helps.</AbstractText>
</Abstract><AuthorList CompleteYN="Y"><Author ValidYN="Y"><LastName>Ortiz</LastName><ForeName>A</ForeName></Author>
</AuthorList></Article></MedlineCitation><PubmedData/></PubmedArticle></PubmedArticleSet>"""


def services(asked: Asked) -> Reply:
    """arXiv's API, and NCBI's search, which gives numbers, and its fetch, which takes them."""
    if asked.path == "/api/query":
        word = asked.query["search_query"].removeprefix("all:")
        return Reply(FEED, kind="application/atom+xml") if word != "down" else Reply("busy", status=503)
    if asked.path.endswith("/esearch.fcgi"):
        found = ["31452104"] if asked.query["term"] == "vitamin d" else []
        header = {"type": "esearch", "version": "0.3"}
        return Reply({"header": header, "esearchresult": {"count": str(len(found)), "retmax": "5", "idlist": found}})
    assert asked.path.endswith("/efetch.fcgi") and asked.query["db"] == "pubmed"
    return Reply(ARTICLES if asked.query["id"] == "31452104" else "bad", kind="text/xml")


async def test_the_research_assistant_answers_from_both_libraries(tokenizer: Any) -> None:
    def play(prompt: Any, params: Any) -> str:
        text = tokenizer.decode(list(prompt)).rpartition("assistant")[2]
        if "31452104" in text:
            found = re.findall(r"\[(?:http://arxiv.org/abs/)?([\w.]+)\]", text)
            return f"<think>So.</think><answer>{' and '.join(found)}</answer>"
        return (
            "<think>A.</think><pubmed>vitamin d</pubmed>" if "2507" in text else "<think>B.</think><arxiv>trees</arxiv>"
        )

    with serving(services) as site:
        options = {"arxiv": site.url, "ncbi": site.url, "email": "me@example.org"}
        tools = build_tools([ToolConfig(use="research:Library", options=options)])
        answer = await deployed(tokenizer, play, *tools).ask("What is new?")
        nothing = await deployed(tokenizer, lambda *_: "<pubmed>x</pubmed>", *tools).ask("What is new?")
        context = CallContext(task=task(), deadline_s=20, seed=0)
        with pytest.raises(ProviderError, match="503"):  # the gateway of a run tries again
            await tools[0]({"query": "down"}, context)
    assert answer.text == "2507.19849v1 and 31452104"
    papers = [seen.outcomes[0].text for seen in answer.rollout.tree.observations.values()]
    assert papers == [
        "[http://arxiv.org/abs/2507.19849v1] Agentic Reinforced Policy Optimization (Guanting Dong, Hangyu Mao, "
        "2025-07-26). Trees of rollouts & entropy.",
        "[31452104] Vitamin D and sleep. (Ortiz, 2019Aug). We asked., It helps.",
    ]
    assert {asked.query.get("email") for asked in site.asked if "eutils" in asked.path} == {"me@example.org"}
    outcomes = [outcome for seen in nothing.rollout.tree.observations.values() for outcome in seen.outcomes]
    assert outcomes[0].text == "nothing" and outcomes[0].status is CallStatus.OK
