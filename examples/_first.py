"""What comes before imports that take seconds: Ctrl-C ends the program at once, what is missing and what is wrong with
the line is told, and threads are to sleep rather than wait awake."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

OURS = ("cryofm_io", "cryofm_model", "cryofm_ops", "cryofm_sampling")
NEEDED = (*OURS, "torch", "tqdm", "matplotlib", "jinja2", "scipy")
ALSO = {"custom_operator.py": ("hypothesis", "pytest")}  # the contract kit

program = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
if program.parent == Path(__file__).resolve().parent:
    # Nothing is at stake yet; `exit_code` takes over.  Who ignores Ctrl-C, as nohup does, still does.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Threads that wait for one another spin, those of GNU's OpenMP for 300,000 turns: beside other jobs, all the time.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # an idle machine loses nothing
    needed = (*NEEDED, *ALSO.get(program.name, ()))
    if missing := [name.replace("_", "-") for name in needed if find_spec(name) is None]:
        print(
            f"error: not installed: {', '.join(missing)}; python -m pip install "
            "'./packages/cryofm-io[atomic,plot,report]' './packages/cryofm-ops[testing]' "
            "'./packages/cryofm-sampling[likelihood]' './packages/cryofm-model[train]' in the checkout",
            file=sys.stderr,
        )
        sys.exit(2)


def check_line(parse: Callable[[], object]) -> None:
    """Answer ``--help``, and refuse a line that is wrong in itself; it is parsed again, for good, when all is there."""
    from _streams import outlived_streams  # which needs tqdm

    with outlived_streams(), suppress(Exception):  # which `exit_code` will make a line of
        parse()
