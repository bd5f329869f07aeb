"""Games of other packages, played in words: Gymnasium's text environments and TextArena's games for one player."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from arpo.environments import AgentTurn, Environment, Step
from arpo.errors import ConfigError, install
from arpo.tasks import Task

WORD = re.compile(r"[\w-]+")


def _package(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"needs the package {name}", where="environment.use", hint=install("games")) from error


class GymnasiumEnvironment(Environment):
    """`id` of a Gymnasium environment whose observations are text, or that renders itself as text (`ansi`).

    `actions` names the actions of a discrete space, in order (default: their numbers); a space of text takes what the
    agent says. `rules` stand before the first observation. `options` go to `gymnasium.make`.
    """

    name = "gymnasium"

    def __init__(
        self, id: str, actions: Sequence[str] = (), rules: str = "", options: Mapping[str, Any] | None = None
    ) -> None:
        gymnasium = _package("gymnasium")
        options = dict(options or {})
        modes = gymnasium.spec(id).kwargs.get("render_modes") or getattr(
            gymnasium.envs.registration.load_env_creator(gymnasium.spec(id).entry_point), "metadata", {}
        ).get("render_modes", [])
        if "ansi" in modes:
            options.setdefault("render_mode", "ansi")
        self.game, self.rules = gymnasium.make(id, **options), rules
        count = getattr(self.game.action_space, "n", None)
        self.actions = [str(action) for action in (actions or range(count or 0))]
        if count is not None and len(self.actions) != count:
            raise ConfigError(f"names {len(self.actions)} of {count} actions", where="actions", value=list(actions))

    def reset(self, task: Task) -> str:
        seen, _ = self.game.reset(seed=self.random.getrandbits(31))
        choices = f"Say one of: {', '.join(self.actions)}." if self.actions else ""
        return "\n".join(part for part in (self.rules, self._shown(seen), choices) if part)

    def _shown(self, seen: Any) -> str:
        return self.game.render() if self.game.render_mode == "ansi" else str(seen)

    def step(self, turn: AgentTurn) -> Step:
        action: Any = turn.said
        if self.actions:
            words = [word for word in WORD.findall(action.lower()) if word in map(str.lower, self.actions)]
            if not words:
                return Step(message=f"That is no action. Say one of: {', '.join(self.actions)}.")
            action = [name.lower() for name in self.actions].index(words[-1])
            action += int(getattr(self.game.action_space, "start", 0))
        seen, reward, ended, cut, _ = self.game.step(action)
        return Step(message=self._shown(seen), reward=float(reward), done=bool(ended or cut))

    def close(self) -> None:
        self.game.close()


class TextArenaEnvironment(Environment):
    """`id` of a game of TextArena for one player, such as `GuessTheNumber-v0`. `options` go to `textarena.make`."""

    name = "textarena"

    def __init__(self, id: str, options: Mapping[str, Any] | None = None) -> None:
        self.game = _package("textarena").make(id, **(options or {}))

    def reset(self, task: Task) -> str:
        self.game.reset(num_players=1, seed=self.random.getrandbits(31))
        return str(self.game.get_observation()[1])

    def step(self, turn: AgentTurn) -> Step:
        done, _ = self.game.step(action=turn.said)
        if done:
            rewards, _ = self.game.close()
            return Step(done=True, reward=float((rewards or {}).get(0, 0.0)))
        return Step(message=str(self.game.get_observation()[1]))
