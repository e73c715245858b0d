"""`+` for likelihoods."""

from typing import Any

__all__ = ["Summable"]


class Summable:
    """Gives a likelihood the sum with others: `l1 + l2`, and `sum([l1, l2, l3])`, are `joint`."""

    __slots__ = ()

    def __add__(self, other: Any) -> Any:
        from cryofm_ops.likelihoods.joint import joint  # which knows the classes that inherit this

        return joint([self, other])

    def __radd__(self, other: Any) -> Any:
        return self if other == 0 else self.__add__(other)  # with which `sum` begins
