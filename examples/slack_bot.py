"""A Slack bot: answers mentions in their thread, and remembers each thread. See docs/example-slack.md."""

import hashlib
import hmac
import html
import json
import os
import re
import sys
import time
from collections import deque

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import arpo


class SlackBot:
    def __init__(self, agent: arpo.Agent, secret: str, token: str, api: str = "https://slack.com/api/") -> None:
        self.agent, self.secret = agent, secret.encode()
        self.slack = httpx.AsyncClient(base_url=api, headers={"Authorization": f"Bearer {token}"})
        self.threads, self.seen = {}, deque(maxlen=1000)  # a conversation a thread; the newest events
        self.app = Starlette(routes=[Route("/slack/events", self.events, methods=["POST"])])

    async def events(self, request: Request) -> Response:
        body, sent_at = await request.body(), request.headers.get("x-slack-request-timestamp", "")
        signature = hmac.new(self.secret, b"v0:" + sent_at.encode() + b":" + body, hashlib.sha256).hexdigest()
        fresh = sent_at.isdecimal() and abs(time.time() - int(sent_at)) < 300  # an older request may be a replay
        if not fresh or not hmac.compare_digest(f"v0={signature}", request.headers.get("x-slack-signature", "")):
            return Response(status_code=401)
        sent = json.loads(body)
        if sent["type"] == "url_verification":
            return JSONResponse({"challenge": sent["challenge"]})
        if sent["event"]["type"] != "app_mention" or sent["event_id"] in self.seen:  # Slack may send an event again
            return Response()
        self.seen.append(sent["event_id"])
        return Response(background=BackgroundTask(self.answer, sent["event"]))  # Slack waits three seconds at most

    async def answer(self, event: dict[str, str]) -> None:
        thread = event["channel"], event.get("thread_ts", event["ts"])
        session = self.threads.setdefault(thread, self.agent.session())
        try:
            text = str(await session.ask(html.unescape(re.sub(r"<@\w+>", "", event["text"])).strip()))
        except arpo.ArpoError as error:
            text = f"I cannot answer that: {error}"
        message = {"channel": thread[0], "thread_ts": thread[1], "text": html.escape(text, quote=False)}
        print((await self.slack.post("chat.postMessage", json=message)).json().get("error", "answered"))


if __name__ == "__main__":  # python slack_bot.py runs/mine
    bot = SlackBot(arpo.Agent.load(sys.argv[1]), os.environ["SLACK_SIGNING_SECRET"], os.environ["SLACK_BOT_TOKEN"])
    uvicorn.run(bot.app, port=3000)
