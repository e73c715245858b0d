"""The flags that the scripts share, and what their values may be."""

import argparse
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

UNCERTAINTY, WEIGHTED = "uncertainty.mrc", "restored_fsc_weighted.mrc"
EVALUATIONS = 25  # of a `PosteriorFlow()`, whose import would take seconds
MOST, LARGEST, EXTREME = 10**5, 4096, 1e15  # of what is counted; of sides, voxels; of numbers that are squared


def add_flags(
    parser: argparse.ArgumentParser, *, steps: int | None, of: str, prior: str | None = "cryofm-tiny"
) -> None:
    """The flags of every script; ``of`` says what a step is; None: as many as it takes, the prior that fits."""
    add = parser.add_argument
    add("--out", type=named_folder, required=True, help="folder for the results; made if need be")
    add("--steps", type=positive, default=steps, help=f"{of} (default {steps or 'as many as it takes'})")
    add("--seed", type=seed, default=0, help="of all random numbers; the same seed gives the same maps (default 0)")
    fits = prior or "the bundled one that fits the data"
    add("--prior", default=prior, help=f"name, file or folder of a prior (default {fits})")
    add("--device", default="cpu", help="torch device: cpu, cuda or cuda:1, … (default cpu)")
    precision = (
        "of the network (default bf16 where the processor has units for it, which is faster; likelihood.py: fp32)"
    )
    add("--precision", choices=("fp32", "bf16"), help=precision)
    add("--overwrite", action="store_true", help="replace results that exist; others of the former run are removed")
    add("--dry-run", action="store_true", help="say what it would take, memory, disk and time, and do nothing")
    flags = "TOML file with flags, such as steps = 20 and b-factor = 60; flags after it on the line win"
    add("--settings", type=Path, action=FromToml, metavar="FILE", help=flags)


class FromToml(argparse.Action):
    """Sets every flag that a TOML file names, as if it stood on the line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Set them; what is wrong with the file is what would be wrong with the line."""
        try:
            with values.open("rb") as file:
                table = tomllib.load(file)
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise argparse.ArgumentError(self, f"{values}: {error}") from None
        for name, value in table.items():
            flag = f"--{name.replace('_', '-')}"
            action = parser._option_string_actions.get(flag)
            if action is None or action.dest in ("help", self.dest):
                raise argparse.ArgumentError(self, f"{values}: there is no flag {flag}")
            if (action.nargs == 0) != isinstance(value, bool):
                kind = "true or false" if action.nargs == 0 else "a value"
                raise argparse.ArgumentError(self, f"{values}: {name} must be {kind}")
            if action.nargs == 0:
                setattr(namespace, action.dest, value)
            else:
                words = [str(one) for one in (value if isinstance(value, list) else [value])]
                found = parser._get_values(action, words)  # with its type, choices and number
                if len(words) != (action.nargs if isinstance(action.nargs, int) else 1) and action.nargs != "+":
                    raise argparse.ArgumentError(action, f"{values}: {len(words)} values")
                action(parser, namespace, found, flag)
        setattr(namespace, self.dest, values)


def add_half_map_flags(parser: argparse.ArgumentParser, prior: str | None = "cryofm-tiny") -> None:
    """Two half maps and what is particular to them; without a prior the one that fits."""
    add = parser.add_argument
    first = "first raw half map (MRC/CCP4, .gz too), or a folder, of an EMDB entry or cryoSPARC job; none: the example"
    add("half1", type=Path, nargs="?", help=first)
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add_map_flags(parser, "half maps")
    add_envelope_flags(parser)
    masked = "take masked or filtered half maps; noise is then underestimated"
    add("--allow-masked", action="store_true", help=masked)
    of = "network evaluations for each restored map, 2 or more; 1000 of the paper's"
    add_flags(parser, steps=8, of=of, prior=prior)
    add_algorithm_flags(parser, "Alg. 1")


def add_enhancement_flags(parser: argparse.ArgumentParser, steps: int) -> None:
    """A map or two half maps, and how a conditional prior is shown it; so many steps of one map."""
    add = parser.add_argument
    add("half1", metavar="map", type=Path, help="map, or first raw half map (MRC/CCP4, .gz too)")
    add("half2", type=Path, nargs="?", help="second raw half map, on the same grid")
    add("--tag", type=natural, help="kind of enhancement, of a network that knows several (default the prior's own)")
    more = "w of guidance, v = (1 + w) v(x | map) - w v(x); above 0 it takes two evaluations (default the prior's own)"
    add("--weight", type=from_zero, help=more)
    add("--mask", type=Path, help="soft mask, 0..1, on the grid of the map: applied to the FSC and the result")
    add("--voxel-size", type=length, help="of the map and the mask, Å, where the headers are wrong")
    envelope = "of the half maps' envelope, Å²; denoise.py finds it (default 0)"
    add("--b-factor", type=b_factor, default=0.0, help=envelope)
    add("--allow-masked", action="store_true", help="take masked or filtered half maps")
    add_checkpoint_flag(parser, "the run")
    add_flags(parser, steps=None, of=f"of one map {steps} unless told, of half maps those of denoise.py")
    add_algorithm_flags(parser, "Alg. 1, of half maps")
    parser.set_defaults(samples=0)


def add_envelope_flags(parser: argparse.ArgumentParser) -> None:
    """What may be said of the envelope of half maps, and what is left of them."""
    add = parser.add_argument
    envelope = "B factor of the half maps' envelope exp(-B ν²/4), Å², 0 for sharpened ones; found where it is not given"
    add("--b-factor", type=b_factor, help=envelope)
    solvent = "the solvent's density over the molecule's; found where it, or B and the scale, are not given"
    add("--solvent-contrast", type=fraction, help=solvent)
    blurred = "leave the maps as blurred as the data; without it they are sharp"
    add("--keep-envelope", action="store_true", help=blurred)
    add("--halves", action="store_true", help="write both restored halves as well")


def add_algorithm_flags(parser: argparse.ArgumentParser, paper: str) -> None:
    """Whose algorithm restores; ``paper`` says which the paper's is."""
    add = parser.add_argument
    whose = (
        f"default: plug-and-play; paper: the paper's {paper}, of far more steps, which needs no statistics of the prior"
    )
    add("--algorithm", choices=("default", "paper"), default="default", help=f"{whose} (default default)")
    push = "λ_max of Alg. 1 in 1000 steps and a box of 64³; others scale it (default 5)"
    add("--max-push", type=above_zero, default=5.0, help=push)
    parser.set_defaults(steps=None)  # which depends on the algorithm


def parse_half_maps(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a script with the flags of half maps."""
    args = parser.parse_args(with_plain_numbers(arguments))
    folder = args.half1 is not None and args.half2 is None and args.half1.is_dir()  # for `take_entry`
    given = (args.half1 is not None, args.half2 is not None, vars(args).get("resolution") is not None)
    if not folder and given not in ((False, False, False), (True, True, False), (True, False, True)):
        parser.error("give both half maps, or one map and its --resolution, or nothing for the example")
    if args.steps is not None and args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def with_plain_numbers(arguments: list[str] | None) -> list[str]:
    """The command line, negative numbers such as -60. and -6e1 so that argparse takes them for no flags."""
    negative = re.compile(r"-(\d+\.|(\d+\.?\d*|\.\d+)e[+-]?\d+)", re.IGNORECASE)
    found = sys.argv[1:] if arguments is None else arguments
    return [f"{float(text):.9f}" if negative.fullmatch(text) else text for text in found]


def add_map_flags(parser: argparse.ArgumentParser, of: str) -> None:
    """What may be said of the input maps."""
    add = parser.add_argument
    mask = f"soft mask, 0..1, on the grid of the {of}: applied to the FSC and the result, whose solvent is then 0"
    add("--mask", type=Path, help=mask)
    add("--voxel-size", type=length, help=f"of the {of} and the mask, Å, where the headers are wrong")
    scale = f"what the density of the {of} is multiplied by to be the prior's, such as the scale in the run.json of a "
    scale += "map of the same kind; found by cross-validation where it is not given"
    add("--scale", type=above_zero, help=scale)
    add_checkpoint_flag(parser, "every restoration and sample")
    add_samples_flag(parser)


def add_checkpoint_flag(parser: argparse.ArgumentParser, of: str) -> None:
    """Where a killed run goes on."""
    state = f"file beside which the state of {of} is kept: the same line goes on from there"
    parser.add_argument("--checkpoint", type=state_file, help=state)


def add_report_flag(parser: argparse.ArgumentParser) -> None:
    """A page to look at, of a script that writes no folder."""
    parser.add_argument("--report", type=Path, metavar="PAGE", help="page to look at as well, such as report.html")


def add_symmetry_flag(parser: argparse.ArgumentParser) -> None:
    """Of the particles."""
    group = "point group, axis along z: C1, C4, D7, T, O, I (default C1)"
    parser.add_argument("--sym", type=symmetry, default="C1", help=group)


def add_samples_flag(parser: argparse.ArgumentParser) -> None:
    """How many maps to draw."""
    draw = f"maps to draw of those that the data allow, each of {EVALUATIONS} network evaluations or some "
    draw += f"more; from two on, their standard deviation is {UNCERTAINTY} (default 0)"
    parser.add_argument("--samples", type=natural, default=0, help=draw)


def positive(text: str) -> int:
    """A whole number from 1 on, or what argparse makes a message of."""
    return natural(text, least=1)


def natural(text: str, least: int = 0, most: int = MOST) -> int:
    """A whole number from 0 on, or what argparse makes a message of."""
    if not least <= (number := int(text)) <= most:
        raise argparse.ArgumentTypeError(f"must be at least {least} and at most {most}")
    return number


def side(text: str) -> int:
    """Of a box, voxels, or what argparse makes a message of."""
    return natural(text, least=8, most=LARGEST)


def images(text: str) -> int:
    """How many of a set, or what argparse makes a message of."""
    return natural(text, least=1, most=10**9)


def processes(text: str) -> int:
    """At once, or what argparse makes a message of."""
    return natural(text, least=1, most=1024)


def symmetry(text: str) -> str:
    """A point group's name, or what argparse makes a message of."""
    if not re.fullmatch(r"[CD][1-9]\d?|T|O|I", text.upper()):
        raise argparse.ArgumentTypeError("must be a point group: C1, C4, D7, T, O or I")
    return text.upper()


def between(text: str, least: float, most: float, unit: str = "") -> float:
    """A number within limits, which NaN is not, or what argparse makes a message of."""
    if not least <= (number := float(text)) <= most:
        raise argparse.ArgumentTypeError(f"must be a number from {least:g} to {most:g}{unit}")
    return number


def number(text: str) -> float:
    """Any finite number, or what argparse makes a message of."""
    return between(text, -EXTREME, EXTREME)


def from_zero(text: str) -> float:
    """A finite number from 0 on, or what argparse makes a message of."""
    return between(text, 0, EXTREME)


def fraction(text: str) -> float:
    """From 0 to 1, or what argparse makes a message of."""
    return between(text, 0, 1)


def part(text: str) -> float:
    """Of a whole, and not nothing of it, or what argparse makes a message of."""
    return between(text, 1e-6, 1)


def length(text: str) -> float:
    """Of a voxel, a particle or a detail, Å, or what argparse makes a message of."""
    return between(text, 0.01, 1e4, " Å")


def width(text: str) -> float:
    """A length that may be 0, Å, or what argparse makes a message of."""
    return between(text, 0, 1e4, " Å")


def b_factor(text: str) -> float:
    """Of an envelope, Å², or what argparse makes a message of."""
    return between(text, -1e4, 1e4, " Å²")


def tilt(text: str) -> float:
    """An angle, or what argparse makes a message of."""
    return between(text, -90, 90, " degrees")


def above_zero(text: str) -> float:
    """A number above 0 whose square is one too, or what argparse makes a message of."""
    if not 1 / EXTREME <= (number := float(text)) <= EXTREME:
        raise argparse.ArgumentTypeError(f"must be a number above 0, from {1 / EXTREME:g} to {EXTREME:g}")
    return number


def half_angle(text: str) -> float:
    """Of a cone, or what argparse makes a message of."""
    return between(text, 5, 45, " degrees")


def check_tilts(parser: argparse.ArgumentParser, flags: str, least: float, most: float) -> None:
    """Refuse a range of tilts that has nothing in it."""
    if least >= most:
        parser.error(f"{flags}: {least:g} to {most:g} degrees has nothing in it; the first must be below the second")


def seed(text: str) -> int:
    """A number that random generators take, or what argparse makes a message of."""
    if not 0 <= (number := int(text)) < 2**64:
        raise argparse.ArgumentTypeError("must be from 0 on, of 64 bits")
    return number


def named_folder(text: str) -> Path:
    """A path; an empty one, of a variable that is not set, would be the folder that one is in."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def state_file(text: str) -> Path:
    """A path where a file can be written, or what argparse makes a message of: not after hours of work."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder; give the name of a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder that can be written to")
    return path


def sample_names(samples: int) -> list[str]:
    """Files of the samples."""
    return [f"sample_{i + 1:02d}.mrc" for i in range(samples)]
