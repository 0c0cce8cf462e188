"""Which problems `--problems` names: ids, and groups of them."""

import re
from typing import Final

from epiconv.bench.layers import LAYERS
from epiconv.bench.problems import PROBLEMS, RECIPE_IDS, SMALL_IDS, Problem

_BY_ID: Final = {problem.id: problem for problem in (*PROBLEMS, *LAYERS)}

NETWORKS: Final = tuple(dict.fromkeys(layer.network for layer in LAYERS))
"""The networks that layers are from; each is a group."""

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "all": tuple(problem.id for problem in PROBLEMS),
    "recipes": RECIPE_IDS,
    "small": SMALL_IDS,
    "layers": tuple(layer.id for layer in LAYERS),
    "tuning": tuple(layer.id for layer in LAYERS if layer.half == "tuning"),
    "measured": tuple(layer.id for layer in LAYERS if layer.half == "measured"),
    **{network: tuple(p.id for p in LAYERS if p.network == network) for network in NETWORKS},
}
"""Ids by the name of a group: all, recipes and small of KernelBench, and those of layers."""


def find_problem(problem_id: str) -> Problem:
    """The built-in problem of that id, a layer or one of KernelBench.

    Args:
        problem_id: as in `Problem.id`.

    Raises:
        ValueError: there is none.

    Example:
        >>> find_problem("kb31").op
        'conv2d'
    """
    if problem_id not in _BY_ID:
        known = ", ".join(problem.id for problem in PROBLEMS)
        raise ValueError(
            f"unknown problem {problem_id!r}; there are {known}, layers of networks, "
            f"and the groups {', '.join(GROUPS)}"
        )
    return _BY_ID[problem_id]


def select_problems(words: str) -> tuple[Problem, ...]:
    """The problems that `--problems` names.

    Args:
        words: ids, and names of `GROUPS`, separated by commas.

    Returns:
        Each problem once, in the order named.

    Raises:
        ValueError: a word is neither.

    Example:
        >>> [problem.id for problem in select_problems("kb4,recipes")]
        ['kb4', 'kb31', 'kb1', 'kb21', 'kb2']
    """
    chosen: dict[str, Problem] = {}
    for word in filter(None, re.split(r"[,\s]+", words)):
        for problem_id in GROUPS.get(word, (word,)):
            chosen[problem_id] = find_problem(problem_id)
    if not chosen:
        raise ValueError("no problem is named")
    return tuple(chosen.values())
