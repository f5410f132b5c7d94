"""together(): one command with which every stage fits, made of the changes that the stages ask for one by one."""

import shlex
from collections.abc import Callable
from dataclasses import replace

from distill.errors import RecipeError
from distill.planning.result import Plan, Together

ROUNDS = 4
"""A change for one stage may leave another short: an adapter, say, that a smaller batch was chosen without."""


def together(made: Plan, replan: Callable[[list[str]], Plan]) -> Plan:
    """`made`, with what makes all of it fit, where its stages ask for several changes and these do.

    Args:
        replan: the plan of the same recipe with these overrides after its own.
    """
    asked = {stage.change.overrides for stage in made.stages if not stage.fits and stage.change}
    if len(asked) < 2:
        return made
    words: dict[str, str] = {}
    tried = made
    for _ in range(ROUNDS):
        changes = _changes(tried)
        if not changes:
            return made
        words |= changes
        try:
            tried = replan([shlex.split(word)[0] for word in words.values()])
        except RecipeError:  # one change excludes another
            return made
        if tried.fits and not tried.refused:
            return replace(made, together=Together(" ".join(words.values()), 3600 * tried.hours))
    return made


def _changes(plan: Plan) -> dict[str, str]:
    """Key → override as it is typed, of all stages that do not fit; empty where one of them has no change."""
    wrong = [stage for stage in plan.stages if not stage.fits]
    if any(stage.change is None for stage in wrong):
        return {}
    typed = [word for stage in wrong if stage.change for word in _split(stage.change.overrides)]
    return {shlex.split(word)[0].partition("=")[0]: word for word in typed}


def _split(overrides: str) -> list[str]:
    """Words with the quotes that they are typed with."""
    lexer = shlex.shlex(overrides, posix=False, punctuation_chars=False)
    lexer.whitespace_split = True
    return list(lexer)
