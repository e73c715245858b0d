"""An experiment: the prior inside RELION's refinement, as the program that makes its references.

    python examples/relion_reconstruct.py --dry-run Refine3D/job007/run_it008_half1_class001_external_reconstruct.star
    export RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE='python examples/relion_reconstruct.py --scale 1.6 --b-factor 80'

The first line says scale and B of a map that RELION (3.1 or later) has made with --external_reconstruct, and the
second line with them, which stay the same for a whole run. With it relion_refine --external_reconstruct calls this for
each half and iteration. Each half is restored from its own data alone, with the noise that RELION's weights tell of
every Fourier coefficient. Coarser than 12 Å RELION's own map is kept, and from one shell below FSC 1/7 on nothing.
RELION has the FSC from its raw sums, before it calls, and no prior can raise it but through better poses.

relion_external_reconstruct always runs first. Whatever goes wrong after it is a warning, its map is used, and the exit
status is 0: any other would end the whole job. The final map, of both halves, is RELION's; the restored one is left
beside it, …_restored.mrc.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryofm_io import ReconstructionSums
    from cryofm_model import CalibratedPrior
    from cryofm_sampling import WeightedHalf

PROGRAM = "relion_external_reconstruct"


def hook(arguments: list[str]) -> int:
    """RELION's own map, and in its place the restored one, if that can be made."""
    try:
        status = subprocess.call([PROGRAM, arguments[-1]])
    except OSError as error:
        print(f"error: {PROGRAM} of RELION cannot be run ({error})", file=sys.stderr)
        return 127
    if status:
        print(f"error: {PROGRAM} failed with status {status}: there is no map", file=sys.stderr)
        return status if status > 0 else 128 - status
    sys.stdout.flush()
    # In a process of its own, whose end, be it for want of memory, is not the end of the job.
    if not (child := os.fork()):
        status = 1
        try:
            replace_map(arguments)
            status = 0
        except BaseException as error:
            if not isinstance(error, SystemExit):  # which has said why
                known = isinstance(error, ValueError | OSError | ImportError)  # as all of ours are
                print(f"error: {error}" if known else traceback.format_exc(), file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if ended:
        how = f"signal {os.WTERMSIG(ended)}" if os.WIFSIGNALED(ended) else "see above"
        print(f"warning: nothing was restored ({how}); RELION's own map of {arguments[-1]} is used", file=sys.stderr)
    return 0


def replace_map(arguments: list[str]) -> None:
    """Restore what the STAR file names, and put it where RELION will read it, or beside it if it is the final map."""
    args = parse(arguments)  # before imports that take seconds
    import torch
    from _command_line import in_tiles

    from cryofm_io import CryoFMError, DensityMap, MapWarning, read_map, write_map
    from cryofm_sampling import PlugAndPlay, restore_weighted

    start = time.perf_counter()
    warnings.simplefilter("ignore", MapWarning)  # RELION's maps of the moment have no voxel size
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    if args.scale is None or args.b_factor is None:
        raise CryoFMError("give --scale and --b-factor, fixed for the whole run; --dry-run finds them")
    sums, half, prior, side = prepared(args)
    resolution = half.shape[0] * half.voxel_size / half.last_shell
    whose = "both halves" if sums.half is None else f"half {sums.half}"
    if not (half.fine[0, 0, : half.last_shell + 1] > 0).any():
        print(f"{whose}: {resolution:.1f} Å is too coarse for the prior; RELION's map is kept")
        return
    plain = torch.from_numpy(read_map(sums.result, voxel_size=sums.voxel_size).data).to(half.map)
    draw = restore_weighted(
        in_tiles(prior, (side,) * 3, args.precision),
        half,
        plain,
        side=side,
        scale=args.scale,
        b_factor=args.b_factor,
        normalization=prior.normalization,
        generator=torch.Generator(half.map.device).manual_seed(args.seed),
        sampler=PlugAndPlay(iterations=args.steps),
    )
    out = sums.result if sums.half else sums.result.with_name(f"{sums.result.stem}_restored.mrc")
    write_map(out, DensityMap(draw.x.cpu().numpy(), sums.voxel_size), overwrite=True)
    took = time.perf_counter() - start
    print(f"{whose}: restored to {resolution:.1f} Å, noise {half.noise_factor:.2f} of the weights', {took:.0f} s")


def prepared(args: argparse.Namespace) -> "tuple[ReconstructionSums, WeightedHalf, CalibratedPrior, int]":
    """The sums, the map that they are of, the prior, and voxels of the prior's over the map's extent."""
    import torch
    from _command_line import calibrated_prior

    from cryofm_io import read_reconstruction_sums
    from cryofm_sampling import WeightedHalf

    prior = calibrated_prior(args)
    sums = read_reconstruction_sums(args.star, voxel_size=args.voxel_size)
    tables = (sums.map(), sums.precision(), sums.fsc.astype("f4"))
    y, W, fsc = (torch.from_numpy(table).to(prior.signal_power.device) for table in tables)
    half = WeightedHalf(y, W, fsc, sums.voxel_size, halves=1 if sums.half else 2)
    return sums, half, prior, 2 * round(sums.box * sums.voxel_size / prior.voxel_size / 2)


def plan(args: argparse.Namespace) -> None:
    """Say what the arrays tell of the map, and the line that RELION's user needs."""
    from _command_line import in_tiles, time_of_one
    from _maps import device_of

    from cryofm_sampling import fit_weighted

    sums, half, prior, side = prepared(args)
    scale, b_factor = fit_weighted(prior, half, normalization=prior.normalization, side=side)
    tiled = in_tiles(prior, (side,) * 3, args.precision)
    seconds = args.steps * time_of_one(tiled, (side,) * 3, device_of(prior))
    print(
        f"{'both halves' if sums.half is None else f'half {sums.half}'}: {sums.box} voxels of {sums.voxel_size:g} Å, "
        f"restored from 12 Å to {sums.box * sums.voxel_size / half.last_shell:.1f} Å on a grid of {side}; noise "
        f"{half.noise_factor:.2f} of what the weights say; about {seconds:.1f} s a call here and now"
    )
    if args.b_factor is None and b_factor == 0:
        few = "no envelope could be told from so few shells; give what PostProcess finds (--b-factor)"
        print(f"warning: {few}", file=sys.stderr)
    b_factor = b_factor if args.b_factor is None else args.b_factor
    words = [os.path.abspath(sys.executable), os.path.abspath(__file__)]
    words += ["--scale", f"{args.scale or scale:.4g}", "--b-factor", f"{b_factor:.0f}"]
    usual = vars(parse([str(args.star)]))
    for flag in ("voxel_size", "steps", "seed", "prior", "device", "precision"):
        if vars(args)[flag] != usual[flag]:
            words += [f"--{flag.replace('_', '-')}", str(vars(args)[flag])]
    print(f"export RELION_EXTERNAL_RECONSTRUCT_EXECUTABLE={shlex.quote(shlex.join(words))}")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    from _flags import above_zero, b_factor, length, positive, seed

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("star", type=Path, help="RELION's …_external_reconstruct.star, which RELION puts at the end of the line")
    add("--dry-run", action="store_true", help="find scale and B, print the line for RELION, and change nothing")
    add("--scale", type=above_zero, help="what the map's density is multiplied by to be the prior's")
    add("--b-factor", type=b_factor, help="B factor of the map's envelope exp(-B ν²/4), Å²")
    add("--voxel-size", type=length, help="Å, where neither the STAR file nor a _model.star before it tells")
    add("--steps", type=positive, default=8, help="network evaluations a map (default 8)")
    add("--seed", type=seed, default=0, help="of all random numbers (default 0)")
    add("--prior", default="cryofm-tiny", help="name, file or folder of a prior (default cryofm-tiny)")
    add("--device", default="cpu", help="torch device: cpu, cuda or cuda:1, … (default cpu)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the network (default fp32)")
    return parser.parse_args(arguments)


def main() -> int | None:
    """As RELION calls it, or by hand."""
    arguments = sys.argv[1:]
    if arguments and arguments[-1].endswith(".star") and not {"--dry-run", "--help", "-h"} & set(arguments):
        try:
            from _streams import outlived_streams
        except ImportError:  # of which the process that restores will tell
            return hook(arguments)
        with outlived_streams():
            return hook(arguments)
    from _first import check_line

    check_line(lambda: parse(arguments))  # before imports that take seconds
    from _command_line import exit_code

    return exit_code(lambda: plan(parse(arguments)))


if __name__ == "__main__":
    sys.exit(main())
