"""The shop's tool and the reward for using it well: plain functions that `recipe.yaml` names `shop:price` and
`shop:score`."""

from arpo import Score, Task, Transcript

PRICES = {
    "apples": 3,
    "bread": 4,
    "butter": 7,
    "carrots": 2,
    "cheese": 12,
    "coffee": 15,
    "eggs": 5,
    "flour": 2,
    "grapes": 6,
    "honey": 11,
    "milk": 2,
    "nuts": 14,
    "oil": 9,
    "onions": 1,
    "pears": 4,
    "rice": 3,
    "salmon": 21,
    "sugar": 2,
    "tea": 18,
    "tomatoes": 5,
}


def price(item: str) -> str:
    """Price of an item of the shop.

    Args:
        item: its name, for instance apples
    """
    name = item.strip().lower()
    if name not in PRICES:
        raise ValueError(f"the shop has no {name}")  # the model reads this
    return f"{name}: {PRICES[name]} a kilo"


def score(task: Task, transcript: Transcript) -> Score:
    """1 for the right sum, 0 for a wrong one, -1 for a turn that breaks the protocol."""
    right = (transcript.answer or "").strip() == task.answers[0]
    well_formed = all(turn.well_formed for turn in transcript.turns)
    return Score(reward=float(right) if well_formed else -1.0, accuracy=float(right))
