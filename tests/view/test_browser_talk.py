"""The page of `arpo serve` in a real browser: a conversation, and the tree of an answer while it grows."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from browser import serious, watched
from playwright.sync_api import Page, expect

from agent_world import Gate, Running, deployed, gated, served
from arpo.engines.scripted import Script
from small_world import results_in, search

pytestmark = pytest.mark.slow

BRANCHING = {"rollout": {"leaves": 4, "roots": 2, "rule": {"rule": "fixed", "at": 1}}}


@contextmanager
def talking(tokenizer: Any, **limits: Any) -> Iterator[tuple[Running, Gate]]:
    """An agent that calls once and answers with the number of questions that it sees. What follows a result waits at
    the gate."""

    def play(prompt: Any, params: Any) -> Script | str:
        if not results_in(tokenizer, prompt):
            return search()
        seen = tokenizer.decode(list(prompt)).count("Question")
        return f"<think>The result says so.</think><answer>{seen} asked <b>so far</b></answer>"

    agent = deployed(tokenizer, play, run=BRANCHING)
    gate = gated(agent, holds=lambda prompt: results_in(tokenizer, prompt))
    with served(agent, **limits) as running:
        yield running, gate


def ask(page: Page, question: str, branches: int = 1) -> None:
    page.get_by_label("branches").select_option(str(branches))
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")


def test_a_tree_grows_while_the_agent_answers_and_the_conversation_goes_on(tokenizer, browser):
    with talking(tokenizer) as (running, gate), watched(browser) as page:
        page.goto(running.url)
        expect(page.get_by_text("1 tool: search")).to_be_visible()
        ask(page, "Question one?", branches=4)
        segments = page.locator("[role=treeitem]")
        expect(segments).to_have_count(5)  # the prompt, two turns and their results
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        assert page.locator(".treebox").inner_html().count("search") > 0
        gate.open.set()
        expect(page.get_by_role("log")).to_contain_text("1 asked <b>so far</b>")  # text, never markup
        expect(page.get_by_text("4 of 4 branches")).to_be_visible()
        expect(segments).to_have_count(9)  # each result has two turns after it
        expect(page.locator(".whole")).to_contain_text("4 leaves of 4")
        assert serious(page) == []
        ask(page, "Question two?")
        expect(page.get_by_role("log")).to_contain_text("2 asked")
        expect(segments).to_have_count(4)
        page.get_by_role("button", name="show its tree").click()
        expect(segments).to_have_count(9)
        page.get_by_role("button", name="New").click()
        ask(page, "Question three?")
        expect(page.get_by_role("log")).to_contain_text("1 asked")


def test_an_answer_can_be_stopped_and_an_error_is_told(tokenizer, browser):
    with talking(tokenizer) as (running, gate), watched(browser) as page:
        page.goto(running.url)
        ask(page, "Question one?")
        expect(page.locator("[role=treeitem]")).to_have_count(3)
        page.get_by_role("button", name="Stop").click()
        expect(page.get_by_role("log")).to_contain_text("stopped")
        gate.open.set()
        ask(page, "Question two?")
        expect(page.get_by_role("log")).to_contain_text("1 asked")  # what was stopped is no part of it
        running.server.agent.components.agent.engine.engine.play = lambda *_: Script(said="x", fails_after=0)
        ask(page, "Question three?")
        expect(page.locator(".answered.failed")).to_contain_text("the script fails after 0 tokens")


def test_a_key_is_asked_for(tokenizer, browser, monkeypatch):
    monkeypatch.setenv("ARPO_TEST_KEY", "the-key")
    with talking(tokenizer, key_env="ARPO_TEST_KEY") as (running, gate):
        gate.open.set()
        context = browser.new_context()  # a refused request is a line in the console
        page = context.new_page()
        page.goto(running.url)
        page.get_by_label("asks for a key").fill("another")
        page.get_by_role("button", name="Use it").click()
        page.get_by_label("asks for a key").fill("the-key")
        page.get_by_role("button", name="Use it").click()
        ask(page, "Question one?")
        expect(page.get_by_role("log")).to_contain_text("1 asked")
        context.close()


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(tokenizer, browser, dark):
    with talking(tokenizer) as (running, gate), watched(browser, width=390, height=800, dark=dark) as page:
        gate.open.set()
        page.goto(running.url)
        ask(page, "Question " + "and more " * 30 + "?", branches=4)
        expect(page.get_by_text(re.compile("4 of 4"))).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert serious(page) == []
