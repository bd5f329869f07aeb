"""Keys that several requests have in common are read once for all of them, and nobody sees a difference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.engines.attention import CachePage, Layout
from arpo.engines.network import Shape
from arpo.engines.slots import BLOCK, Slots

LAYERS, HEADS, KV_HEADS, DIM = 2, 6, 2, 16


class Owner:
    row = -1


def slots_of(rows: int, memory_rows: int = 64) -> Slots:
    shape = Shape(LAYERS, HEADS, KV_HEADS, DIM)
    token_bytes = LAYERS * 2 * KV_HEADS * DIM * 4
    return Slots(
        shape,
        dtype=torch.float32,
        device=torch.device("cpu"),
        memory=memory_rows * 8 * BLOCK * token_bytes,
        most=rows,
        evicts=True,
    )


def compute(slots: Slots, row: int, upto: int) -> None:
    """What a forward pass does: keys and values that depend on place, time and chance."""
    slot = slots.rows[row]
    for position in range(slot.known, upto):
        slots.store[:, :, position // BLOCK, row, :, position % BLOCK] = torch.randn(LAYERS, 2, KV_HEADS, DIM)
    slot.known = upto


def enter(slots: Slots, prompt: list[int], written: int) -> Owner | None:
    """A request from arrival to `written` tokens of its own."""
    owner, ids = Owner(), np.array(prompt, np.int32)
    match = slots.match(ids)
    reuse = min(match.count, len(prompt) - 1) if match else 0
    if slots.take(owner, ids, len(prompt) + written, match, reuse) is None:
        return None
    compute(slots, owner.row, len(prompt))
    slots.tokens[owner.row, len(prompt) : len(prompt) + written] = 1000 + np.arange(written)
    compute(slots, owner.row, len(prompt) + written)
    return owner


@settings(max_examples=30, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 3 * BLOCK), st.integers(1, BLOCK), st.booleans()), max_size=14
    ),
    seed=st.integers(0, 9),
)
def test_blocks_under_one_number_hold_the_same_keys(arrivals, seed):
    torch.manual_seed(seed)
    slots, live = slots_of(6, memory_rows=5), []
    for family, length, written, leaves in arrivals:
        owner = enter(slots, [family * 100 + i for i in range(length)], written)
        if owner is None:
            continue
        live.append(owner)
        if leaves or len(live) > 4:
            slots.leave(live.pop(0).row)
    rows = [owner.row for owner in live]
    reach = [slots.rows[row].known for row in rows]
    read = [set() for _ in rows]
    for page in slots.pages(rows, reach):
        for number in page.rows:
            read[number].add(page.block)
            held = min(BLOCK, reach[number] - page.block * BLOCK)
            own = slots.store[:, :, page.block, rows[number], :, :held]
            assert torch.equal(own, slots.store[:, :, page.block, page.slot, :, :held])
    assert [sorted(blocks) for blocks in read] == [list(range(-(-count // BLOCK))) for count in reach]


def test_a_fork_shares_the_whole_blocks_that_it_copied():
    slots = slots_of(16)
    trunk = list(range(3 * BLOCK + 5))
    owners = [enter(slots, [*trunk, 500 + i], 4) for i in range(11)]
    pages = slots.pages([owner.row for owner in owners], [slots.rows[owner.row].known for owner in owners])
    assert sorted((page.block, len(page.rows)) for page in pages) == [(0, 11), (1, 11), (2, 11), *[(3, 1)] * 11]


@pytest.mark.parametrize("members", [2, 8, 9, 20])
def test_attention_over_shared_pages_is_attention_over_ones_own(members):
    """The slow twin reads each slot's own copy, and softmax over all its keys at once."""
    torch.manual_seed(members)
    slots = slots_of(32)
    trunk = list(range(2 * BLOCK + 9))
    owners = [enter(slots, [*trunk, *range(600 + 40 * i, 601 + 41 * i)], 1 + 5 * i % 30) for i in range(members)]
    owners.append(enter(slots, [7, 8, 9], 2))  # short, alone
    rows = [owner.row for owner in owners]
    reach = [slots.rows[row].known for row in rows]
    write = (range(len(rows)), rows, [count - 1 for count in reach])
    query, key, value = (torch.randn(1, n, len(rows), DIM) for n in (HEADS, KV_HEADS, KV_HEADS))
    layout = Layout(
        slots.store, reach=reach, pages=slots.pages(rows, reach), heads_per_key=HEADS // KV_HEADS, write=write
    )
    alone = [CachePage(block, row, [i]) for i, row in enumerate(rows) for block in range(-(-reach[i] // BLOCK))]
    apart = Layout(slots.store, reach=reach, pages=alone, heads_per_key=HEADS // KV_HEADS, write=write)
    for layer in range(LAYERS):
        found = layout.attend(layer, query, key, value, 0.25)
        torch.testing.assert_close(found, apart.attend(layer, query, key, value, 0.25), atol=2e-6, rtol=0)
        for i, row in enumerate(rows):
            keys, values = (slots.store[layer, n, :, row].transpose(0, 1).flatten(1, 2)[:, : reach[i]] for n in (0, 1))
            folded = query[0, :, i].view(KV_HEADS, -1, DIM)
            own = torch.softmax(folded @ keys.transpose(1, 2) * 0.25, -1) @ values
            torch.testing.assert_close(found[0, i], own.view(HEADS, DIM), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_page_read_to_different_depths_and_scores_that_exp_cannot_hold(size):
    """Pages of one row may differ in weight by more than a float32 can say, and a reader may see a part of a shared
    page alone."""
    torch.manual_seed(0)
    store = torch.randn(1, 2, 2, 1, KV_HEADS, BLOCK, DIM)
    reach = [1, 5, BLOCK, BLOCK + 1, 2 * BLOCK]
    pages = [CachePage(0, 0, range(5)), CachePage(1, 0, [3, 4])]
    layout = Layout(store, reach=reach, pages=pages, heads_per_key=HEADS // KV_HEADS, write=([], [], []))
    query = size * torch.randn(1, HEADS, len(reach), DIM)
    nothing = torch.zeros(1, KV_HEADS, len(reach), DIM)
    found = layout.attend(0, query, nothing, nothing, 0.25)
    keys, values = store[0, :, :, 0].transpose(1, 2).flatten(2, 3).double()
    for i, count in enumerate(reach):
        scores = query[0, :, i].view(KV_HEADS, -1, DIM).double() @ keys[:, :count].transpose(1, 2) * 0.25
        own = torch.softmax(scores, -1) @ values[:, :count]
        torch.testing.assert_close(found[0, i].double(), own.view(HEADS, DIM), atol=1e-4 if size > 1 else 2e-6, rtol=0)
