"""What Python code constructs is refused like a recipe's parts: with the key, the value, and what would be right."""

import pytest

import arpo
from arpo.rollout.config import RolloutConfig
from arpo.tools.config import ToolConfig

DATA = {"train": {"source": "atlas"}}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"rollout": {"leafs": 8}},
            r"^rollout\.leafs: there is no key 'leafs' here; did you mean 'leaves'\? \(got 8\)$",
        ),
        ({"leaves": 8}, r"^leaves: .*did you mean 'rollout\.leaves'"),
        ({"rollout": {"leaves": "x"}}, r"^rollout\.leaves: should be a whole number \(got 'x'\)$"),
        ({"data": {"train": {"source": "atals"}}}, r"^data\.train\.source: .*'atals'"),
        ({"rollout": 3}, r"^rollout: should be a group of keys: leaves"),
        ({"optim": {"lr": -1}, "seed": "x"}, r"optim\.lr: should be greater than 0 \(got -1\)"),
    ],
)
def test_a_run_that_cannot_be_says_where_and_what_would_be_right(values: dict, says: str) -> None:
    with pytest.raises(arpo.ConfigError, match=f"(?m){says}"):
        arpo.Run(**{"data": DATA, **values})


def test_a_part_alone_names_its_own_keys() -> None:
    with pytest.raises(arpo.ConfigError, match=r"^leafs: .*did you mean 'leaves'"):
        RolloutConfig(leafs=3)
    assert RolloutConfig(leaves=12).leaves == 12


def test_a_run_without_data_says_so() -> None:
    with pytest.raises(arpo.ConfigError, match=r"^data: is missing$"):
        arpo.Run()


def test_a_key_is_not_shown_while_it_is_refused() -> None:
    with pytest.raises(arpo.ConfigError) as caught:
        ToolConfig(use="search", options={"headers": {"Authorization": "Bearer sk-0123456789"}})
    assert "sk-0123456789" not in str(caught.value)
