"""How many cases a check gets: two of its own, and as many drawn ones as its share of CPU time allows."""

import os
import time
from collections.abc import Callable, Iterator, Sequence

import hypothesis
from hypothesis import Phase
from hypothesis import strategies as st

from cryofm_ops.fourier.grid import Shape
from cryofm_ops.testing._case import KINDS, Case

__all__ = ["run"]

_SHARE = 0.4  # CPU seconds after which a check draws no case any more


def run(
    check: Callable[[Case], None],
    shapes: Sequence[Shape],
    device: str,
    *,
    unit: float = 1.0,
    plain: bool = False,
    examples: int = 12,
) -> None:
    """Run a check on two volumes of every box, on a zero volume without a batch, and on cases that Hypothesis draws.

    These are the same ones every time where CI is set. Of a slow object fewer are drawn. `plain` keeps to white noise
    of unit scale.
    """
    cases = st.builds(
        Case,
        shape=st.sampled_from(tuple(shapes)),
        batch=st.sampled_from(((), (1,), (2,), (2, 3))),
        kind=st.just("normal") if plain else st.sampled_from(KINDS),
        scale=st.just(1.0) if plain else st.sampled_from((1.0, 1e-3, 1e3)),
        seed=st.integers(0, 2**20),
        device=st.just(device),
        unit=st.just(unit),
    )
    settings = hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=bool(os.environ.get("CI")),
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if examples > 6 else [])],  # the rare ones are slow
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        report_multiple_bugs=False,
    )
    always = tuple(_always(shapes, device, unit, plain))
    test = settings(hypothesis.given(cases)(_affordable(check, always)))
    for case in reversed(always):
        test = hypothesis.example(case)(test)
    test()


def _always(shapes: Sequence[Shape], device: str, unit: float, plain: bool) -> Iterator[Case]:
    """The cases that are run however slow the object is."""
    for shape in shapes:
        yield Case(shape, batch=(2,), device=device, unit=unit)
    if not plain:
        yield Case(shapes[0], kind="zero", device=device, unit=unit)


def _affordable(check: Callable[[Case], None], always: Sequence[Case]) -> Callable[[Case], None]:
    """The check, passing without a look at a case that passed, or for which no time is left; a failure comes again."""
    start = time.process_time()
    due, passed = set(always), set[Case]()

    def affordable(case: Case) -> None:
        if case in passed or (case not in due and time.process_time() - start > _SHARE):
            return
        due.add(case)
        check(case)
        passed.add(case)

    return affordable
