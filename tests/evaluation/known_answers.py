"""A project whose agent plays what a file says: it knows answers, is wrong, fails, or takes its time. All else is
real."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiny_project import TOOL, TinyProject

AGENT = '''"""An engine that answers as plays.json says, and writes down what it was asked."""
import json
from pathlib import Path

from arpo.engines.scripted import Script, ScriptedEngine

HERE = Path(__file__).parent


def build(config, model, tokenizer):
    plays = json.loads((HERE / "plays.json").read_text())
    longest_first = sorted(plays, key=len, reverse=True)

    def play(prompt, params):
        text = tokenizer.decode(list(prompt))
        question = next(q for q in longest_first if q in text)
        with (HERE / "asked.log").open("a") as file:
            file.write(json.dumps(question) + "\\n")
        turns = plays[question]["turns"]
        said = turns[min(text.split(question, 1)[1].count("<result>"), len(turns) - 1)]
        play = plays[question]
        return Script(said=said, delay_s=play.get("delay_s", 0), fails_after=play.get("fails_after"))

    return ScriptedEngine(play, tokenizer)
'''
RECIPE = """\
base: {base}
engine: {{kind: "played_agent_{number}:build", slots: 8}}
rollout: {{turn_tokens: 400, branch_tokens: 20000, max_calls: 3, retries: 0}}
"""
SUMS = [{"question": f"What is {n} plus {n * n}?", "answer": f"It is a sum.\n#### {n + n * n}"} for n in range(2, 14)]
NAMES = [{"question": f"Who follows king number {n}?", "answer": f"Queen Ada{'ab' * n}"} for n in range(1, 7)]


@dataclass(frozen=True, slots=True)
class Played:
    """`data` holds gsm8k.jsonl (12 questions) and bamboogle.jsonl (6)."""

    folder: Path
    recipe: Path
    data: Path

    def asked(self) -> list[str]:
        """The questions of every request so far."""
        log = self.folder / "asked.log"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def play(self, plays: Mapping[str, object]) -> None:
        (self.folder / "plays.json").write_text(json.dumps(plays))


def says(answer: str, **more: object) -> dict[str, object]:
    return {"turns": [f"<answer>{answer}</answer>"], **more}


def golds() -> dict[str, dict[str, object]]:
    """The plays of an agent that knows every answer."""
    return {row["question"]: says(row["answer"].split("#### ")[-1]) for row in (*SUMS, *NAMES)}


def write_played(project: TinyProject, folder: Path, number: int = 0, rows: Sequence[tuple[str, list]] = ()) -> Played:
    """`number`: names the agent's module, which Python keeps by name."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name, given in rows or (("gsm8k", SUMS), ("bamboogle", NAMES)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    (folder / f"played_agent_{number}.py").write_text(AGENT)
    (folder / "tiny_world.py").write_text(TOOL)
    recipe = folder / "played.yaml"
    recipe.write_text(RECIPE.format(base=project.recipe, number=number))
    played = Played(folder, recipe, data)
    played.play(golds())
    return played
