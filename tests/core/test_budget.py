"""What the budget makes final, and when: no tip waits for what cannot change its decision."""

from arpo.core.budget import Budget, Want


def budget(*, leaves, roots, root_cap, most=1):
    made = Budget(leaves=leaves, roots=roots, root_cap=root_cap, most=lambda depth: most)
    for root in range(roots):
        made.start_line(root, 1)
    return made


def ask(made, place, wanted, score):
    made.reach(place)
    made.hold(Want(place, wanted, score))
    return made.settle()


def test_tip_that_wants_nothing_is_final_at_once():
    assert ask(budget(leaves=3, roots=2, root_cap=3), (1,), 0, 0.0) == [((1,), 0)]


def test_last_leaf_waits_for_the_tip_that_could_come_before_and_goes_to_the_higher_score():
    made = budget(leaves=3, roots=2, root_cap=3)
    assert ask(made, (1,), 1, 0.5) == []
    assert ask(made, (0,), 1, 0.6) == [((0,), 1), ((1,), 0)]
    made = budget(leaves=3, roots=2, root_cap=3)
    assert ask(made, (0,), 1, 0.5) == []
    assert ask(made, (1,), 1, 0.5) == [((0,), 1), ((1,), 0)]  # equal scores: by path


def test_nothing_left_is_final_at_once_although_others_are_to_come():
    made = budget(leaves=3, roots=3, root_cap=3)
    assert ask(made, (2,), 1, 0.5) == [((2,), 0)]
    made = budget(leaves=9, roots=3, root_cap=1)
    assert ask(made, (2,), 1, 0.5) == [((2,), 0)]


def test_a_root_reserves_no_more_than_its_room():
    made = budget(leaves=2 + 4, roots=2, root_cap=2, most=3)  # root 0 may want 3 but has room for 1
    made.left = 2
    assert ask(made, (1,), 1, 0.5) == [((1,), 1)]


def test_deeper_tip_waits_for_its_own_roots_room():
    made = budget(leaves=12, roots=2, root_cap=3)
    assert ask(made, (0,), 1, 1.0) == [((0,), 1)]
    assert ask(made, (0, 0), 1, 1.0) == []  # its sibling (0, 1) may reach depth 2 with a higher score: room for one
    made.stop_line(0, 2)
    assert made.settle() == [((0, 0), 1)]


def test_excess_is_what_no_root_can_use_any_more():
    made = budget(leaves=8, roots=2, root_cap=3)
    assert made.take_excess() == 2  # 6 left, room for 2 at each root
    assert made.take_excess() == 0
    made.stop_line(0, 1)
    assert made.take_excess() == 2
    made.stop_line(1, 1)
    assert made.take_excess() == 2 and made.left == 0


def test_what_a_root_can_use_is_counted_from_what_the_rule_may_still_want():
    made = Budget(leaves=4, roots=1, root_cap=4, most=lambda depth: int(depth == 1))
    made.start_line(0, 1)
    assert made.take_excess() == 2  # 3 left, and the one tip at depth 1 wants one at most
    assert ask(made, (0,), 1, 0.0) == [((0,), 1)]
    assert made.take_excess() == 0 == made.left


def test_line_past_the_last_call_can_use_nothing():
    made = Budget(leaves=4, roots=1, root_cap=4, most=lambda depth: 1, deepest=2)
    made.start_line(0, 1)
    assert made.take_excess() == 0  # the line doubles twice at most
    assert ask(made, (0,), 0, 0.0) == [((0,), 0)]
    assert made.take_excess() == 2  # it can double once more
    assert ask(made, (0, 0), 0, 0.0) == [((0, 0), 0)]
    assert made.take_excess() == 1 and made.left == 0  # its last turn is still being written


def test_an_earlier_line_reserves_no_more_than_it_can_become():
    made = budget(leaves=2 + 5, roots=2, root_cap=7)
    assert ask(made, (0,), 0, 0.0) == [((0,), 0)]
    assert ask(made, (0, 0), 1, 0.0) == [
        ((0, 0), 1)
    ]  # root 1 stands before depth 1: two tips at depth 2 at most, so three leaves


def test_tip_that_wants_more_than_its_root_has_room_for_gets_the_room_at_once():
    made = budget(leaves=3 + 6, roots=3, root_cap=2, most=2)
    assert ask(made, (2,), 2, 0.5) == [((2,), 1)]
