"""The answers of an evaluation, judged by a model (`arpo.rewards.judge`), each verdict on disk at once."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from arpo.endpoint.client import Endpoint
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ProviderError, ToolError
from arpo.evaluation.samples import SampleRecord
from arpo.evaluation.verdicts import NO_ANSWER, Verdict, append_verdict, key_of, read_verdicts
from arpo.event_loop import task_group
from arpo.rewards.judge import PROMPT, Word, verdict_of


class Judge:
    """Asks one endpoint. Raises ToolsStoppedError where nothing more can be asked (key, budget, outage)."""

    def __init__(self, config: EndpointConfig, *, tell: Callable[[str, str], None] = lambda text, level: None) -> None:
        self.config = config
        self.endpoint = Endpoint(config, "judge", tell=tell)
        self.name = f"{config.model} at {config.url}"

    def ready(self) -> None:
        """Raises ConfigError where its key is not there."""
        self.endpoint.ready("evaluation.judge")

    async def judge(self, question: str, golds: Sequence[str], answer: str) -> tuple[Word, str, str]:
        """Verdict, reason and the answer as the judge understood it.

        Raises ProviderError or ToolError where the judge gives none, also when it is asked once more.
        """
        return await verdict_of(self.endpoint.chat, question, golds, answer)

    async def close(self) -> None:
        await self.endpoint.close()


async def judge_answers(
    judge: Judge,
    answers: Sequence[SampleRecord],
    folder: Path,
    *,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> list[Verdict]:
    """A verdict on each of `answers`, those in FOLDER/judged.jsonl without asking; every new one is written there at
    once.

    Equal answers to a question are asked about once. An answer that the judge gives no verdict on is one with a
    failure, asked again the next time; what stops everything (ToolsStoppedError) propagates, and what was had is kept.
    """
    known = {v.key: v for v in read_verdicts(folder) if v.verdict != "none"}
    written = {(v.key, v.benchmark, v.id, v.sample) for v in read_verdicts(folder) if v.verdict != "none"}
    groups: dict[str, list[SampleRecord]] = {}
    for answer in answers:
        groups.setdefault(key_of(judge.name, PROMPT, answer.question, answer.gold, answer.answer), []).append(answer)
    verdicts: list[Verdict] = []

    def note(verdict: Verdict, of: Sequence[SampleRecord]) -> None:
        for answer in of:
            own = _verdict(
                judge, verdict.key, answer, verdict.verdict, verdict.reason, verdict.final_answer, verdict.failure
            )
            if (own.key, own.benchmark, own.id, own.sample) not in written:
                append_verdict(folder, own)
            verdicts.append(own)
        watch(len(verdicts), len(answers))

    async def one(key: str, of: Sequence[SampleRecord]) -> None:
        answer = of[0]
        if answer.answer is None or not answer.answer.strip():
            note(_verdict(judge, key, answer, "wrong", NO_ANSWER), of)
            return
        try:
            word, reason, final = await judge.judge(answer.question, answer.gold, answer.answer)
        except (ProviderError, ToolError) as error:
            note(_verdict(judge, key, answer, "none", failure=str(error)), of)
        else:
            note(_verdict(judge, key, answer, word, reason, final), of)

    places = asyncio.Semaphore(4 * max(1, judge.config.concurrency))  # tasks that exist at a time

    async def placed(key: str, of: Sequence[SampleRecord]) -> None:
        async with places:
            await one(key, of)

    async with task_group() as group:
        for key, of in groups.items():
            if key in known:
                note(known[key], of)
            else:
                group.create_task(placed(key, of))
    return verdicts


def _verdict(
    judge: Judge, key: str, answer: SampleRecord, word: str, reason: str = "", final_answer: str = "", failure: str = ""
) -> Verdict:
    return Verdict(
        key=key,
        benchmark=answer.benchmark,
        id=answer.id,
        sample=answer.sample,
        judge=judge.name,
        prompt=PROMPT,
        question=answer.question,
        golds=tuple(answer.gold),
        answer=answer.answer,
        verdict=word,  # type: ignore[arg-type]
        reason=reason,
        final_answer=final_answer,
        rule=answer.accuracy,
        failure=failure,
    )
