"""Environment servers as OpenEnv's package makes them: `python openenv_servers.py NAME PORT`."""

import random
import sys
from typing import Any

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server import Action, Environment, Observation, State, create_app
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation


class Guess(Action):
    """Guess the number."""

    number: int


class Hint(Observation):
    hint: str = ""


class Guessing(Environment[Guess, Hint, State]):
    """A number from 0 to 9, and hints."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, most: int = 9, **kwargs: Any) -> Hint:
        self.number, self.guesses = random.Random(seed).randint(0, most), 0
        return Hint(hint=f"A number from 0 to {most}.")

    def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Hint:
        self.guesses += 1
        if action.number == self.number:
            return Hint(hint="right", done=True, reward=1.0 / self.guesses)
        return Hint(hint="more" if action.number < self.number else "less", reward=0.0)

    @property
    def state(self) -> State:
        return State(step_count=self.guesses)


class Notes(MCPEnvironment):
    """Keeps notes by tools."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        self.notes: list[str] = []
        server = FastMCP("notes")

        @server.tool
        def add(text: str) -> str:
            """Adds a note."""
            self.notes.append(text)
            return f"{len(self.notes)} notes: {', '.join(self.notes)}"

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Observation:
        self.notes.clear()
        return Observation()

    def _step_impl(self, action: Action, timeout_s: float | None = None, **kwargs: Any) -> Observation:
        raise ValueError(f"no such action: {action}")

    @property
    def state(self) -> State:
        return State(step_count=len(self.notes))


if __name__ == "__main__":
    apps = {
        "guessing": lambda: create_app(Guessing, Guess, Hint, max_concurrent_envs=64),
        "notes": lambda: create_app(Notes, CallToolAction, CallToolObservation, max_concurrent_envs=64),
    }
    uvicorn.run(apps[sys.argv[1]](), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
