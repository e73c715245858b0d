"""Reading, checking and writing of safetensors files."""

import json
import os
import re
import secrets
import socket
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cryofm_model._kinds import shown
from cryofm_model.errors import CryoFMError, WeightsError

__all__ = ["build", "read", "write"]

_STORED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # no less, which would grow fourfold
# Bytes, and tensors that they describe: far more than published checkpoints have, and read in no time.
_LONGEST_HEADER, _MOST_TENSORS = 2**21, 10_000
_REPEATED = 40  # characters of the name that a temporary one repeats: names have a limit of 255 bytes


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. It is mapped into memory, not read: a tensor comes when it is used.

    Raises:
        WeightsError: a pickle, a damaged file, something else.
    """
    try:
        with path.open("rb") as file:
            head, size = file.read(9), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error})") from None
    # A safetensors file begins with the length of its header, whose first bytes may be anything, and "{".
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise WeightsError(f"{path} is a pickle, which can run code when it is read; convert it to safetensors")
    if not 0 < int.from_bytes(head[:8], "little") <= min(_LONGEST_HEADER, size - 8):
        raise WeightsError(f"{path} is not a readable safetensors file (its header is none, or cut off)")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            if len(keys) > _MOST_TENSORS:
                raise WeightsError(f"{path} holds {len(keys)} tensors, no network more than {_MOST_TENSORS}")
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except WeightsError:
        raise
    except Exception as error:  # of every kind, for a header that somebody made up
        raise WeightsError(f"{path} is not a readable safetensors file ({shown(error)})") from None


def build(network: Callable[[], nn.Module], tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A network for evaluation, made of the tensors themselves: no weight is drawn, and none is copied that
    need not be.

    Raises:
        WeightsError: tensors that are missing, not expected, of another shape or no floating-point numbers, the first
            five by name; or no such network can be.
    """
    try:
        with torch.device("meta"):
            built = network().float()  # whatever precision torch makes modules in
    except CryoFMError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{path}: no network has such sizes ({shown(error)})") from None
    expected = built.state_dict()
    wrong = [f"{key} is missing" for key in expected if key not in tensors]
    wrong += [f"{key} is not expected" for key in tensors if key not in expected]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    wrong += [
        f"{key} is stored as {tensors[key].dtype}, expected one of {', '.join(map(str, _STORED))}"
        for key, value in expected.items()
        if key in tensors and value.is_floating_point() and tensors[key].dtype not in _STORED
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{path}: the weights do not fit their network: {'; '.join(wrong[:5])}{more}")
    built.load_state_dict({key: _as(tensors[key], like) for key, like in expected.items()}, assign=True)
    return built.eval().requires_grad_(False)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, overwrite: bool) -> None:
    """Write a file, which appears whole or not at all.

    Raises:
        WeightsError: it exists, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists; pass overwrite=True to replace it")
    _sweep(path)
    partial = path.with_name(f"{_ours()}{os.getpid()}-{secrets.token_hex(8)}-{path.name[-_REPEATED:]}")
    try:
        partial.touch(exist_ok=False)
        mode = partial.stat().st_mode
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
        _sort_metadata(partial)
        partial.chmod(mode)  # save_file makes it unreadable to others
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be written ({error})") from None
    finally:
        partial.unlink(missing_ok=True)


def _ours() -> str:
    """What the names begin with that processes of this machine write to; the process follows, and what is random."""
    return f".partial-{zlib.crc32(socket.gethostname().encode()):08x}-"


def _sweep(path: Path) -> None:
    """Remove what processes that live no more left half-written of a file."""
    name = re.compile(rf"{_ours()}(\d{{1,10}})-[0-9a-f]{{16}}-{re.escape(path.name[-_REPEATED:])}", re.DOTALL)
    with suppress(OSError):  # of a folder that is not there, which is told later
        for other in os.listdir(path.parent):
            if (found := name.fullmatch(other)) and not _lives(int(found[1])):
                path.with_name(other).unlink(missing_ok=True)


def _lives(process: int) -> bool:
    if sys.platform == "win32":
        return True  # where asking would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order, which the library leaves to chance: the same prior gives the same file."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:
            file.seek(8)
            file.write(ordered.ljust(length))


def _as(value: Tensor, like: Tensor) -> Tensor:
    """The value in the precision and the layout (channels last, say) that the network has it in."""
    value = value.to(like.dtype)
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(value)
