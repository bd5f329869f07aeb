"""Puzzles of reasoning-gym (`data.train.source: gym:NAME`) with several attempts: its verifier answers each."""

from arpo.environments import AgentTurn, Environment, Step
from arpo.tasks import Task
from arpo.tasks.gym import gym_score


class PuzzleEnvironment(Environment):
    """An answer that is not fully right is told so, `attempts` times. The reward is the score of the last answer."""

    name = "puzzle"

    def __init__(self, attempts: int = 3) -> None:
        self.attempts, self.made = attempts, 0

    def reset(self, task: Task) -> None:
        self.task = task

    def step(self, turn: AgentTurn) -> Step:
        if turn.calls:
            return Step()
        self.made += 1
        score = gym_score(self.task, turn.said)
        if score >= 1 or self.made >= self.attempts:
            return Step(done=True, reward=score)
        return Step(message=f"That is not right (score {score:.2g}). Try again.")
