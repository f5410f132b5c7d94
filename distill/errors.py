"""What users meet when something is wrong. Every message names the input, what was found, what is needed.

DistillError                    exit code 1 unless a child says otherwise
├── RecipeError                 2  the recipe or an argument is wrong
│   ├── DataError               2  a data file, field or row is wrong
│   └── TargetMismatch          2  teacher and student do not fit each other
└── StageFailed                 1  a stage stopped; the same command goes on from its last good state
    └── VerificationFailed      1  a package does not say what its student says
"""

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """Base of every error that is meant for the user: shown without a stack trace."""

    exit_code = 1


class RecipeError(DistillError, ValueError):
    """The recipe or an argument is wrong; nothing was run."""

    exit_code = 2


class DataError(RecipeError):
    """A data file, one of its fields or one of its rows is wrong."""


class TargetMismatch(RecipeError):
    """The teacher's targets cannot be used for this student."""


class StageFailed(DistillError, RuntimeError):
    """A stage stopped; running the same command again goes on."""


class VerificationFailed(StageFailed):
    """A package was made, but does not load or does not say what its student says."""


def first_line(error: BaseException) -> str:
    """The first line of what somebody else's error says, 200 characters at most; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def did_you_mean(name: str, valid: Iterable[str], most: int = 1) -> str:
    """ "did you mean x or y? " for a name that is nearly one of `valid`, `most` of them at most; else empty."""
    near = difflib.get_close_matches(name, list(valid), n=most, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? " if near else ""
