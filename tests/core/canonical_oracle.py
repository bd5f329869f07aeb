"""Section 4 served literally: a whole depth at a time, all its tips known before the first is served. Slow, and without
a clock."""

import math

from expansion_world import HEAD, VOCAB, World

from arpo.core import CallStatus, Place, Role, StopReason, Tip, keyed
from arpo.core.roots import Pilot


def mean(values, k=HEAD):
    head = list(values)[:k]
    return sum(head) / len(head)


class Canonical:
    def __init__(self, world: World, *, rule, leaves, roots, root_cap, retries, stats, seed, task, leftover="prompt"):
        self.world, self.rule, self.retries, self.stats, self.seed, self.task = world, rule, retries, stats, seed, task
        self.leaves: dict[Place, StopReason] = {}
        self.granted: dict[Place, int] = {}
        self.wanted: dict[Place, int] = {}
        self.scores: dict[Place, float] = {}
        self.tips: dict[Place, Tip] = {}
        if isinstance(roots, Pilot):
            heads = self.pilot_heads()
            roots = roots.roots(leaves, mean(self.turn((0,), Role.ROOT).entropies) if heads else 0.0, tuple(heads))
        self.roots = roots
        cap = root_cap or min(leaves, max(2, math.ceil(1.5 * leaves / roots)))
        left, room = leaves - roots, {r: min(cap, leaves) - 1 for r in range(roots)}
        turns = [((r,), Role.ROOT) for r in range(roots)]
        while turns or leftover == "tips":
            if not turns:
                leftover = "shared"
                open_tips = [place for place, got in self.granted.items() if not got and place in self.tips]
                ranked = sorted(open_tips, key=lambda p: (-self.scores[p], p))
                while left and any(room[place[0]] for place in ranked):
                    for place in ranked:
                        if left and room[place[0]]:
                            left, room[place[0]] = left - 1, room[place[0]] - 1
                            self.granted[place] += 1
                            turns.append(((*place, self.granted[place]), Role.SIBLING))
            tips = [place for place, role in turns if self.go_on(place, role)]
            wants = {place: self.judge(place) for place in tips}
            turns = [((*place, 0), Role.PROBE) for place in tips]
            for place in sorted(tips, key=lambda p: (-wants[p].score, p)):
                got = min(wants[place].wanted, left, room[place[0]])
                left -= got
                room[place[0]] -= got
                self.granted[place], self.wanted[place], self.scores[place] = (
                    got,
                    wants[place].wanted,
                    wants[place].score,
                )
                turns += [((*place, i), Role.SIBLING) for i in range(1, got + 1)]
        self.fills = [(roots + i,) for i in range(left)]
        for fill in self.fills:
            place, role = fill, Role.FILL
            while self.go_on(place, role):
                place, role = (*place, 0), Role.PROBE

    def pilot_heads(self):
        place, role, heads = (0,), Role.ROOT, []
        while self.go_on(place, role, note=False):
            place, role = (*place, 0), Role.PROBE
            if (turn := self.turn(place, role)) is not None:
                heads.append(mean(turn.entropies))
        return heads

    def turn(self, place, role):
        for attempt in range(self.retries + 1):
            if not self.world.turn_fails(place, attempt):
                return self.world.turn(place, role, attempt)
        return None

    def go_on(self, place, role, note=True):
        """True if the turn at `place` leads to a tip; else its leaf is noted."""
        turn = self.turn(place, role)
        ending = None
        if turn is None:
            ending = StopReason.ENGINE_FAILED
        elif not turn.calls:
            ending = StopReason.FINISHED
        elif all(self.world.calls_fail(place, attempt) for attempt in range(self.retries + 1)):
            ending = StopReason.TOOL_FAILED
        else:
            returned = self.world.returned(place)
            assert returned.observation.outcomes[0].status is CallStatus.OK
            ending = returned.ending
        if ending is not None and note:
            self.leaves[place] = ending
        return ending is None

    def judge(self, place):
        probe = self.turn((*place, 0), Role.PROBE)
        if probe is None:

            class Nothing:
                wanted, score = 0, 0.0

            return Nothing
        root = self.turn(place[:1], Role.ROOT)
        low, high = probe.bounds or (probe.entropies,) * 2
        root_low, root_high = root.bounds or (root.entropies,) * 2
        before = [place[:depth] for depth in range(1, len(place))]
        run = 0
        for earlier in reversed(before):
            if not self.wanted[earlier]:
                break
            run += 1
        self.tips[place] = Tip(
            place=place,
            head=mean(probe.entropies),
            head_low=mean(low),
            head_high=mean(high),
            baseline=mean(root.entropies),
            baseline_low=mean(root_low),
            baseline_high=mean(root_high),
            heads=tuple(self.tips[p].head for p in before if p in self.tips),
            wanted_before=run,
            head_tokens=HEAD,
            vocab_size=VOCAB,
        )
        return self.rule(self.tips[place], self.stats, keyed(self.seed, self.stats.step, self.task, place, "branch"))
