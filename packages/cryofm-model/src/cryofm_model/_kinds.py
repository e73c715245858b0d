"""What values of settings may be: one `Kind` for each kind of them, which refuses all others in one line.

Settings come from recipes and from files of weights as well as from Python, so each may be anything. Comparisons alone
let NaN and infinity pass, and what is no number raises whatever it likes.
"""

import math
from collections.abc import Callable
from typing import Any

import attrs

from cryofm_model.errors import CryoFMError

__all__ = [
    "Kind",
    "even",
    "finite",
    "flag",
    "fraction",
    "listed",
    "not_negative",
    "one_of",
    "positive",
    "shown",
    "sizes",
    "whole",
]

_LONGEST = 80  # characters of a value in a message
_MOST_LEVELS = 16


@attrs.frozen
class Kind:
    """What a value may be; a validator of attrs.

    Attributes:
        expected: of the value, for the message.
        holds: whether a value, which may be anything, is so.

    >>> positive.check("lr", math.inf)
    Traceback (most recent call last):
    ...
    cryofm_model.errors.CryoFMError: lr must be a finite number above 0, found inf
    """

    expected: str
    holds: Callable[[Any], bool]

    def __call__(self, instance: Any, attribute: "attrs.Attribute[Any]", value: Any) -> None:
        """Raise `CryoFMError` unless the value is of this kind."""
        self.check(f"{type(instance).__name__}: {attribute.name}", value)

    def check(self, name: str, value: Any) -> None:
        """Raise `CryoFMError` unless the value is of this kind."""
        if not self.holds(value):
            raise CryoFMError(f"{name} must be {self.expected}, found {shown(value)}")


def shown(value: object) -> str:
    """A value in a message, of one line and bounded length.

    >>> shown([1.5, "two\\nlines"])
    "[1.5, 'two\\\\nlines']"
    """
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of thousands of digits
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any floating-point number
        return False


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


finite = Kind("a finite number", _is_number)
positive = Kind("a finite number above 0", lambda value: _is_number(value) and value > 0)
not_negative = Kind("a finite number from 0 on", lambda value: _is_number(value) and value >= 0)
fraction = Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
flag = Kind("true or false", lambda value: isinstance(value, bool))


def whole(least: int, most: int = 2**53) -> Kind:
    """Whole numbers of a range, by default as far as floating-point numbers know each of them."""
    return Kind(f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most))


def even(most: int) -> Kind:
    """Even numbers from 2 on."""
    return Kind(f"an even number from 2 to {most}", lambda value: _is_whole(value, 2, most) and value % 2 == 0)


def listed(values: Any) -> Any:
    """A list as a tuple; what is none is left to be refused."""
    return tuple(values) if isinstance(values, list) else values


def one_of(*words: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def sizes(least: int, most: int) -> Kind:
    """Whole numbers of a range, one for each level of a network."""
    return Kind(
        f"at most {_MOST_LEVELS} whole numbers from {least} to {most}",
        lambda values: (
            isinstance(values, list | tuple)
            and len(values) <= _MOST_LEVELS
            and all(_is_whole(value, least, most) for value in values)
        ),
    )
