"""An engine for the recall world that plays the agent of its traces: `engine.kind: recall_player:engine`.

It notes a fact by the request's seed and answers what it still reads. The request whose number is in the environment
variable `KILLED_AT` kills its process.
"""

import os
import signal
from collections.abc import Sequence
from random import Random
from typing import Any

from arpo.engines import SamplingParams
from arpo.engines.config import EngineConfig
from arpo.engines.scripted import ScriptedEngine
from arpo.tasks.recall import ASKED, KINDS, UNKNOWN


class Played(ScriptedEngine):
    """`longest`: tokens of the longest prompt of all."""

    longest = 0


def engine(_config: EngineConfig, _model: Any, tokenizer: Any) -> Played:
    facts = {fact for kind in KINDS.values() for fact in kind}

    def play(prompt: Sequence[int], params: SamplingParams) -> str:
        if played.requests == int(os.environ.get("KILLED_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        Played.longest = max(Played.longest, len(prompt))
        text = str(tokenizer.decode(list(prompt)))
        page = text.rpartition("<result>")[2].partition("</result>")[0].split()
        if page and page[0] == ASKED:
            words = text.replace("<", " ").replace(">", " ").split()
            known = [word for word in words if word in KINDS[page[1]]]
            return f"<answer>{known[0] if known else UNKNOWN}</answer>"
        noted = page and page[-1] in facts and Random(params.seed).random() < 0.5
        return f"<note>{page[-1] if noted else ''}</note>"

    played = Played(play, tokenizer)
    return played
