"""What a conditional flow restores, and a likelihood: ``python benchmarks/conditional.py MAPS... --conditional FILE``.

The paper's protocol (see ``_protocol.py``) on the mean of both halves; every row's noise as the halves tell it. Beside
the data and the best linear filter that one can make without the truth, which is what the conditional prior is shown:

- likelihood: the unconditional prior (--prior) and the data's likelihood, as `restore` chooses
- likelihood, blind: the same with the conditional prior, shown nothing
- regression: what the conditional prior answers at once, x̂_0 at t = 1
- flow: its flow with the volume shown, in as many even Euler steps as the likelihood takes evaluations
- guided: the same with guidance of weight 1, of twice as many evaluations
- both: the conditional prior with the volume shown, and the likelihood

Leaves CSV: a line for every map, row and kind, and their means. A killed run goes on when the same line is given again.
"""

import argparse
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np
import torch
from _inputs import clean
from _protocol import BOX, ROWS, VOXEL, WEDGE, WEDGE_ROW, Degraded, Score, crop, degraded
from _table import write_csv
from torch import Tensor

from cryofm_io import plot_slices
from cryofm_model import CalibratedPrior, ConditionalPrior, CryoFMError, load_prior
from cryofm_ops import irfft, radial, radial_mean, rfft
from cryofm_sampling import Conditioned, Flow, PlugAndPlay, restore

SCORES = tuple(field.name for field in attrs.fields(Score))
KINDS = ("degraded", "Wiener", "likelihood", "likelihood, blind", "regression", "flow", "guided", "both")
WEIGHT = 1.0  # of guidance


def filtered(data: Degraded) -> Tensor:
    """What the best linear filter per shell makes of the data; the signal is what their power has beyond noise."""
    likelihood = data.of_mean
    W, y = likelihood.spectral_precision(), likelihood.spectral_data()
    noise = torch.where(W > 0, 1 / W, 0)
    signal = radial_mean(rfft(data.mean).abs() ** 2, likelihood.shape) - radial_mean(noise, likelihood.shape)
    P = radial(signal.clamp(min=0), likelihood.shape)
    return irfft(torch.where(W > 0, P / (P + noise) * y, 0), likelihood.shape)


def estimates(
    data: Degraded, row: str, prior: CalibratedPrior, conditional: ConditionalPrior, seed: int
) -> Iterator[tuple[str, int, Tensor]]:
    """Kind, network evaluations, and the map, of all `KINDS`."""
    mean, std = conditional.normalization.mean, conditional.normalization.std
    shown = filtered(data)
    yield "degraded", 0, data.mean
    yield "Wiener", 0, shown
    z = (shown / float(np.percentile(shown.numpy(), 99.999)) - mean) / std
    beside, steps = Conditioned(conditional, z), 20 if row == WEDGE_ROW else 8

    def numbers() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for kind, field in (("likelihood", prior), ("likelihood, blind", conditional), ("both", beside)):
        draw = restore(field, data.of_mean, shape=BOX, generator=numbers(), sampler=PlugAndPlay(steps))
        yield kind, draw.nfe, draw.x
    flows = (
        ("regression", beside, 1),
        ("flow", beside, steps),
        ("guided", attrs.evolve(beside, weight=WEIGHT), steps),
    )
    for kind, flow, n in flows:
        draw = Flow(n, "euler", "even")(flow, shape=BOX, generator=numbers())
        yield kind, draw.nfe, draw.x * std + mean


def means(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    """Of the maps, a line for every row and kind."""
    table: list[dict[str, object]] = []
    for row in ROWS:
        for kind in KINDS:
            same = [line for line in lines if (line["row"], line["kind"]) == (row, kind)]
            if same:
                values = {key: round(float(np.mean([float(str(line[key])) for line in same])), 4) for key in SCORES}
                first = {"map": f"mean of {len(same)}", "row": row, "kind": kind, "evaluations": same[0]["evaluations"]}
                table.append({**first, **values})
    return table


def done(path: Path) -> list[dict[str, object]]:
    """The lines of a former run."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(line) for line in csv.DictReader(file) if not line["map"].startswith("mean of")]


@torch.no_grad()
def main() -> None:
    """Parse the command line, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("maps", type=Path, nargs="+", help="maps that the priors were not trained on")
    add("--conditional", required=True, help="conditional prior with statistics, such as train_prior.py leaves")
    add("--prior", default="cryofm-tiny", help="the unconditional one (default cryofm-tiny)")
    add("--rows", nargs="+", default=list(ROWS), choices=ROWS, metavar="ROW", help="of the protocol (default all)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks (default fp32)")
    add("--out", type=Path, required=True, help="CSV file")
    add("--pictures", type=Path, help="folder for slices of every row that is measured, all kinds beside the truth")
    args = parser.parse_args()
    prior, conditional = load_prior(args.prior), load_prior(args.conditional)
    if not isinstance(conditional, ConditionalPrior) or not isinstance(conditional, CalibratedPrior):
        raise CryoFMError(f"{args.conditional} is no conditional prior with statistics")
    if not isinstance(prior, CalibratedPrior):
        raise CryoFMError(f"{args.prior} carries no statistics")
    lines = done(args.out)
    for seed, path in enumerate(args.maps):
        truth = torch.from_numpy(crop(clean(path, VOXEL), BOX[0]))
        name, generator = path.name.removesuffix(".gz").rsplit(".", 1)[0], torch.Generator().manual_seed(seed)
        for row in ROWS:
            data = degraded(row, truth, generator)  # of every row, so that those that follow have the same noise
            if row not in args.rows or any((line["map"], line["row"]) == (name, row) for line in lines):
                continue
            found: dict[str, Mapping[str, object]] = {}
            shown: dict[str, Tensor] = {}
            with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                for kind, evaluations, x in estimates(data, row, prior, conditional, seed):
                    shown[kind] = x.float()
                    score = Score.of(shown[kind], truth, VOXEL, WEDGE if row == WEDGE_ROW else None)
                    values = {key: round(value, 4) for key, value in attrs.asdict(score).items()}
                    found[kind] = {"map": name, "row": row, "kind": kind, "evaluations": evaluations, **values}
            lines += [dict(found[kind]) for kind in KINDS]
            if args.pictures is not None:
                volumes = {kind: shown[kind].numpy() for kind in KINDS} | {"truth": truth.numpy()}
                plot_slices(volumes, args.pictures / f"{name}_{row}.png".replace(" ", "_"), VOXEL, overwrite=True)
            print(name, row, {kind: found[kind]["auc"] for kind in KINDS}, flush=True)
            write_csv(args.out, lines + means(lines))  # after every row: a run of hours may be stopped


if __name__ == "__main__":
    main()
