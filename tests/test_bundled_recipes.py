"""What holds for every recipe that comes along."""

import pytest

from arpo.recipe.load import bundled, load_recipe


@pytest.mark.parametrize("name", sorted(bundled()))
def test_what_is_reported_was_not_chosen_by(name: str) -> None:
    """The validation split may choose a checkpoint; what is said of it comes from questions that chose nothing."""
    run = load_recipe(name)
    assert run.evaluation.split == "test" and run.data.test is not None
    others = [data for data in (run.data.train, run.data.validation) if data]
    assert all((data.source, data.split) != (run.data.test.source, run.data.test.split) for data in others)
