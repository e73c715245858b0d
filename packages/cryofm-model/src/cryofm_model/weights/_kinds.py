"""What values of settings may be: one `Kind` for each kind of them, which refuses all others in one line.

Settings come from recipes and from files of weights as well as from Python, so each may be anything. Comparisons alone
let NaN and infinity pass, and what is no number raises whatever it likes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from cryofm_model.errors import CryoFMError
from cryofm_model.networks.hourglass_config import HourglassConfig
from cryofm_model.networks.unet import UNetConfig
from cryofm_model.prior import Normalization

__all__ = [
    "Kind",
    "check_settings",
    "check_values",
    "finite",
    "flag",
    "fraction",
    "not_negative",
    "one_of",
    "positive",
    "settings_of_its_kind",
    "shown",
    "whole",
]

_LONGEST = 80  # characters of a value in a message
_LEVELS, _FEATURES, _BLOCKS, _SIDE = 16, 2**16, 2**10, 2**10  # of networks: beyond any that a machine can hold


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


def one_of(*words: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(words)}", lambda value: isinstance(value, str) and value in words)


def _sizes(least: int, most: int) -> Kind:
    return Kind(
        f"at most {_LEVELS} whole numbers from {least} to {most}",
        lambda values: (
            isinstance(values, list | tuple)
            and len(values) <= _LEVELS
            and all(_is_whole(value, least, most) for value in values)
        ),
    )


_even = Kind(f"an even number from 2 to {_FEATURES}", lambda value: _is_whole(value, 2, _FEATURES) and value % 2 == 0)
_KINDS: Mapping[type, Mapping[str, Kind]] = {
    Normalization: {"mean": finite, "std": positive},
    UNetConfig: {
        "widths": _sizes(1, _FEATURES),
        "depths": _sizes(0, _BLOCKS),
        "up_depths": _sizes(0, _BLOCKS),
        "patch": whole(1, 64),
        "conditioning": _even,
    },
    HourglassConfig: {
        "widths": _sizes(1, _FEATURES),
        "depths": _sizes(1, _BLOCKS),
        "patch": whole(1, 64),
        "kernel": whole(1, _SIDE),
        "head_width": whole(12, _FEATURES),
        "channels": whole(1, _FEATURES),
        "conditioning": _even,
        "ff_factor": whole(1, _BLOCKS),
        "time_code": one_of("fp32", "bf16", "fp16"),
    },
}


def check_values(kind: type, values: Mapping[str, Any], where: str) -> None:
    """Raise `CryoFMError` where a value is none for that attribute of `Normalization`, `UNetConfig`, ...; ``where``
    begins the message.
    """
    for name, value in values.items():
        if (known := _KINDS.get(kind, {}).get(name)) is not None:
            known.check(f"{where}{name}", value)


def check_settings(settings: Any) -> None:
    """The same for an object that was made from its values."""
    name = type(settings).__name__
    check_values(type(settings), attrs.asdict(settings), f"{name}: ")


def settings_of_its_kind(_: Any, __: "attrs.Attribute[Any]", settings: Any) -> None:
    """`check_settings` as a validator of attrs."""
    check_settings(settings)
