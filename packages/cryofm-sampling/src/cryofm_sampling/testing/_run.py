"""All checks of a thing in one message."""

from collections.abc import Callable, Mapping

from cryofm_sampling.errors import SettingError

__all__ = ["run_all"]


def run_all(
    thing: object,
    checks: Mapping[str, Callable[[], None]],
    expected_failures: Mapping[str, str] | None,
    kind: type[AssertionError],
) -> tuple[str, ...]:
    """Names of the checks that passed; all failures at once, and those that were expected and did not come."""
    reasons, name = dict(expected_failures or {}), type(thing).__name__
    if unknown := sorted(reasons.keys() - checks.keys()):
        raise SettingError(f"expected_failures names no check: {', '.join(unknown)}; there are {', '.join(checks)}")
    passed, wrong = [], []
    for check, run in checks.items():
        try:
            run()
        except Exception as error:
            if check not in reasons:
                came = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                wrong.append(f"{name} fails {check}: {came}")
        else:
            passed.append(check)
            if check in reasons:
                wrong.append(f"{name} passes {check}, expected to fail ({reasons[check]}); take it out")
    if wrong:
        raise kind(f"{len(wrong)} of {len(checks)} checks failed\n" + "\n".join(wrong))
    return tuple(passed)
