"""A training run in virtual time: trees grow on vLLM's servers and call tools, drivers read every turn, ranks update,
new weights reach the servers, GPUs fail.

The rules are those of the code: a tree's requests go to its home, the server with the fewest requests when it began;
at most a step's worth of trees is in flight; step s starts when version s - 1 - `staleness` is published; a mini-batch
takes as many rounds of packs as ranks need; servers stand still while they load weights. Durations are parameters.
Nothing depends on this machine, and everything random on the seed.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any

Then = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Seconds, tokens and numbers of things. A spread is the sigma of a lognormal with the given mean."""

    servers: int
    server_gpus: int = 1
    ranks: int = 1
    drivers: int = 1
    staleness: int = 1
    # a step
    tasks: int = 128
    mini_batches: int = 8
    roots: int = 8
    leaves: int = 16
    turns: int = 3
    """Of a leaf; half of the leaves fork from the others after their first call of a tool."""
    prompt: int = 300
    result: int = 300
    turn_tokens: float = 400
    turn_spread: float = 0.8
    # a server: a step of decoding takes `step_s`, and `request_s` more for every request of its batch
    step_s: float = 0.0
    request_s: float = 0.0
    slots: int = 256
    # tools, all behind one limit of calls a second
    tool_s: float = 0.0
    tool_spread: float = 0.0
    tool_rate: float = math.inf
    tool_failures: float = 0.0
    """Share of calls that fail after `tool_timeout_s` and are tried again."""
    tool_timeout_s: float = 10.0
    # the driver
    driver_token_s: float = 0.0
    driver_turn_s: float = 0.0
    # the learner
    pack_tokens: int = 16_384
    pack_s: float = 0.0
    write_s: float = 0.0
    load_s: float = 0.0
    # failures
    gpu_hours: float = math.inf
    """Between two failures of a GPU."""
    server_restart_s: float = 120.0
    learner_restart_s: float = 60.0
    save_every: int = 10


@dataclass(slots=True)
class Figures:
    """Of the steps that were measured. Shares are of the time."""

    step_s: float
    tokens_per_s: float
    gpus: float
    """Share in which GPUs have work: a server with a request, a rank with a pack."""
    servers: float
    requests: float
    """Of a server, while it has some."""
    learner: float
    """Share in which an update runs."""
    ranks: float
    """Share in which a rank has a pack."""
    driver: float
    limiter: float
    loading: float
    staleness: float
    """Of a token: how many versions newer the weights are that its step's update starts from."""
    failures: int


class Clock:
    def __init__(self) -> None:
        self.now, self._events, self._order = 0.0, list[tuple[float, int, Then]](), count()

    def after(self, seconds: float, then: Then) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def tick(self) -> None:
        self.now, _, then = heapq.heappop(self._events)
        then()


class Queue:
    """First come, first served, by `places` at a time."""

    def __init__(self, clock: Clock, places: int) -> None:
        self.clock, self.free, self.busy_s = clock, [0.0] * places, 0.0

    def serve(self, seconds: float, then: Then) -> None:
        if not seconds:
            then()
            return
        begins = max(self.clock.now, heapq.heappop(self.free))
        heapq.heappush(self.free, begins + seconds)

        def served() -> None:
            self.busy_s += seconds
            then()

        self.clock.after(begins + seconds - self.clock.now, served)


class Server:
    """Continuous batching: all requests of the batch progress together, a token a step."""

    def __init__(self, clock: Clock, setting: Setting) -> None:
        self.clock, self.setting = clock, setting
        self.up, self.loading = True, False
        self.busy_s = self.request_s = 0.0
        self._tokens = self._since = 0.0  # decoded for every request that was there all the time
        self._batch: list[tuple[float, int, Then]] = []  # by the count of tokens at which each ends
        self._waiting: deque[tuple[float, Then]] = deque()
        self._order, self._planned = count(), 0

    @property
    def live(self) -> int:
        return len(self._batch) + len(self._waiting)

    def ask(self, tokens: float, then: Then) -> None:
        with self._changing():
            self._waiting.append((tokens, then))

    def stand(self, loading: bool) -> None:
        with self._changing():
            self.loading = loading

    def fail(self) -> list[tuple[float, Then]]:
        """Its requests, with the tokens that each still lacks."""
        with self._changing():
            self.up = False
            lost = [(end - self._tokens, then) for end, _, then in sorted(self._batch)] + list(self._waiting)
            self._batch, self._waiting = [], deque()
        return lost

    def revive(self) -> None:
        with self._changing():
            self.up = True

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.account()
        yield
        while self._waiting and len(self._batch) < self.setting.slots:
            tokens, then = self._waiting.popleft()
            heapq.heappush(self._batch, (self._tokens + tokens, next(self._order), then))
        self._planned += 1
        if self._batch and self.up and not self.loading:
            left = (self._batch[0][0] - self._tokens) * self._token_s()
            self.clock.after(max(0.0, left), partial(self._finish, self._planned))

    def _token_s(self) -> float:
        return self.setting.step_s + self.setting.request_s * len(self._batch)

    def account(self) -> None:
        elapsed, self._since = self.clock.now - self._since, self.clock.now
        if self._batch and self.up and not self.loading:
            self.busy_s += elapsed
            self.request_s += elapsed * len(self._batch)
            self._tokens += elapsed / self._token_s() if elapsed else 0.0

    def _finish(self, planned: int) -> None:
        if planned != self._planned:
            return  # the batch is another by now
        with self._changing():
            end, _, then = heapq.heappop(self._batch)
            self._tokens = end
        then()


@dataclass(slots=True)
class Tree:
    step: int
    number: int = 0
    turns: list[float] = field(default_factory=list)
    """Tokens of each turn of each line."""
    calls: list[float] = field(default_factory=list)
    """Seconds of the call after each."""
    home: Server | None = None
    lines: int = 0
    """That grow."""
    tokens: float = 0.0


@dataclass(slots=True)
class Step:
    trees: list[Tree] = field(default_factory=list)
    started: int = 0
    tokens: float = 0.0
    late: float = 0.0
    """Versions by which tokens are older than the weights that the step's update starts from, added up."""


class Run:
    def __init__(self, setting: Setting, seed: int = 0) -> None:
        self.setting, self.seed, self.clock = setting, seed, Clock()
        self.servers = [Server(self.clock, setting) for _ in range(setting.servers)]
        self.driver = Queue(self.clock, setting.drivers)
        self.limiter = Queue(self.clock, 1)
        self.steps: dict[int, Step] = {}
        self.version, self.next_step, self.flying = 0, 1, 0
        self.learning = self._updating = False  # an update and its publication; the update
        self.learning_s = self.rank_s = self.loading_s = self.tokens = self.learned = self.late = 0.0
        self.failures, self._attempt, self._ranks_back, self._work = 0, 0, 0.0, (0.0, 0.0)
        self._homeless: list[tuple[Tree, float, Then]] = []

    def measure(self, steps: int, warm: int = 1) -> Figures:
        """Of `steps` steps after `warm` others."""
        self._plan_failures()
        self._start_trees()
        self._until(warm)
        began, before = self.clock.now, self._totals()
        self._until(warm + steps)
        seconds = self.clock.now - began
        busy, asked, updating, packs, drove, limited, loaded, tokens, learned, late = (
            now - then for now, then in zip(self._totals(), before, strict=True)
        )
        s = self.setting
        gpus = s.servers * s.server_gpus + s.ranks
        return Figures(
            step_s=seconds / steps,
            tokens_per_s=tokens / seconds,
            gpus=(busy * s.server_gpus + packs) / seconds / gpus,
            servers=busy / seconds / s.servers,
            requests=asked / busy if busy else 0.0,
            learner=updating / seconds,
            ranks=packs / seconds / s.ranks,
            driver=drove / seconds / s.drivers,
            limiter=limited / seconds,
            loading=loaded / seconds,
            staleness=late / learned if learned else 0.0,
            failures=self.failures,
        )

    def _until(self, version: int) -> None:
        while self.version < version:
            self.clock.tick()

    def _totals(self) -> tuple[float, ...]:
        for server in self.servers:
            server.account()
        busy, asked = sum(each.busy_s for each in self.servers), sum(each.request_s for each in self.servers)
        learner = (self.learning_s, self.rank_s)
        queues = (self.driver.busy_s, self.limiter.busy_s)
        return (busy, asked, *learner, *queues, self.loading_s, self.tokens, self.learned, self.late)

    def _draw(self, *key: Any) -> Random:
        return Random("/".join(map(str, (self.seed, *key))))

    # --- sampling

    def _start_trees(self) -> None:
        s = self.setting
        while self.flying < s.tasks and self.version >= self.next_step - 1 - s.staleness:
            step = self.steps.setdefault(self.next_step, Step())
            tree = self._tree(self.next_step, step.started)
            step.started += 1
            self.flying += 1
            if step.started == s.tasks:
                self.next_step += 1
            tree.lines = s.roots
            for root in range(s.roots):
                self._turn(tree, root, 0)

    def _tree(self, step: int, number: int) -> Tree:
        s, draw = self.setting, self._draw("tree", step, number)
        turns = [max(1.0, s.turn_tokens * _spread(draw, s.turn_spread)) for _ in range(s.leaves * s.turns)]
        calls = [s.tool_s * _spread(draw, s.tool_spread) for _ in turns]
        if s.tool_failures:
            for at in range(len(calls)):
                while draw.random() < s.tool_failures:
                    calls[at] += s.tool_timeout_s
        return Tree(step, number, turns, calls)

    def _turn(self, tree: Tree, line: int, turn: int) -> None:
        s = self.setting
        tokens = tree.turns[line * s.turns + turn]
        step = self.steps[tree.step]
        step.tokens += tokens
        step.late += (tree.step - 1 - self.version) * tokens
        tree.tokens += tokens
        spent = s.driver_turn_s + s.driver_token_s * tokens

        def sampled() -> None:
            self.tokens += tokens
            self.driver.serve(spent, read)

        def read() -> None:
            if turn + 1 == s.turns:
                self._end_line(tree)
            else:
                self._call(tree, line, turn)

        self._ask(tree, tokens, sampled)

    def _ask(self, tree: Tree, tokens: float, then: Then) -> None:
        if tree.home is None or not tree.home.up:
            up = [server for server in self.servers if server.up]
            if not up:
                self._homeless.append((tree, tokens, then))
                return
            tree.home = min(up, key=lambda server: server.live)
        tree.home.ask(tokens, then)

    def _call(self, tree: Tree, line: int, turn: int) -> None:
        s = self.setting
        seconds = tree.calls[line * s.turns + turn]

        def returned() -> None:
            tree.tokens += s.result
            if turn == 0 and line + s.roots < s.leaves:
                tree.lines += 1
                self._turn(tree, line + s.roots, turn + 1)
            self._turn(tree, line, turn + 1)

        self.limiter.serve(1 / s.tool_rate, lambda: self.clock.after(seconds, returned))

    def _end_line(self, tree: Tree) -> None:
        tree.lines -= 1
        if not tree.lines:
            self.flying -= 1
            self.steps[tree.step].trees.append(tree)
            self._learn()
            self._start_trees()

    # --- learning

    def _learn(self) -> None:
        step, s = self.steps.get(self.version + 1), self.setting
        if self.learning or step is None or len(step.trees) < s.tasks:
            return
        self.learning = True
        trees = sorted(step.trees, key=lambda tree: tree.number)
        rounds, packs = 0, 0
        for number in range(s.mini_batches):
            tokens = sum(s.prompt + tree.tokens for tree in trees[number :: s.mini_batches])
            packed = math.ceil(tokens / s.pack_tokens)
            packs, rounds = packs + packed, rounds + math.ceil(packed / s.ranks)
        self.learned += step.tokens
        self.late += step.late
        self._work = rounds * s.pack_s, packs * s.pack_s
        self._update()

    def _update(self) -> None:
        self._attempt += 1
        attempt, (seconds, ranks_s) = self._attempt, self._work

        def updated() -> None:
            if attempt != self._attempt:
                return  # a rank was lost meanwhile, and it began again
            self._updating = False
            self.learning_s += seconds
            self.rank_s += ranks_s
            self.clock.after(self.setting.write_s, self._load)

        self._updating = True
        self.clock.after(max(0.0, self._ranks_back - self.clock.now) + seconds, updated)

    def _load(self) -> None:
        for server in self.servers:
            server.stand(True)
        self.loading_s += self.setting.load_s
        self.clock.after(self.setting.load_s, self._publish)

    def _publish(self) -> None:
        for server in self.servers:
            server.stand(False)
        self.version += 1
        del self.steps[self.version]
        self.learning = False
        self._learn()
        self._start_trees()

    # --- failures

    def _plan_failures(self) -> None:
        s = self.setting
        if s.gpu_hours == math.inf:
            return
        for number, server in enumerate(self.servers):
            self._fail_later(self._draw("server", number), s.server_gpus, partial(self._fail_server, server))
        self._fail_later(self._draw("learner"), s.ranks, self._fail_learner)

    def _fail_later(self, draw: Random, gpus: int, fail: Then) -> None:
        def failed() -> None:
            self.failures += 1
            fail()
            self._fail_later(draw, gpus, fail)

        self.clock.after(draw.expovariate(gpus / (3600 * self.setting.gpu_hours)), failed)

    def _fail_server(self, server: Server) -> None:
        if not server.up:
            return
        for tokens, then in server.fail():
            self._ask(Tree(0), tokens, then)

        def back() -> None:
            server.revive()
            homeless, self._homeless = self._homeless, []
            for waiting in homeless:
                self._ask(*waiting)

        self.clock.after(self.setting.server_restart_s, back)

    def _fail_learner(self) -> None:
        """Updates since the last checkpoint are done again; an update that is under way, after them."""
        again = self.version % self.setting.save_every
        self._ranks_back = self.clock.now + self.setting.learner_restart_s + again * self._work[0]
        if self._updating:
            self._update()


def _spread(draw: Random, sigma: float) -> float:
    """Lognormal with mean 1."""
    return math.exp(sigma * draw.gauss(0.0, 1.0) - sigma * sigma / 2) if sigma else 1.0
