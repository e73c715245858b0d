"""Reading, checking and writing of safetensors files."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cryofm_model.errors import WeightsError

__all__ = ["build", "read", "write"]


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file. It is mapped into memory, not read: a tensor comes when it is used.

    Raises:
        WeightsError: a pickle, a damaged file, something else.
    """
    with path.open("rb") as file:
        head = file.read(9)
    # A safetensors file begins with the length of its header, whose first bytes may be anything, and "{".
    if head[8:] != b"{" and (head[:2] == b"PK" or head[:1] == b"\x80"):
        raise WeightsError(f"{path} is a pickle, which can run code when it is read; convert it to safetensors")
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error})") from None


def build(network: Callable[[], nn.Module], tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """A network for evaluation, made of the tensors themselves: no weight is drawn, and none is copied that
    need not be.

    Raises:
        WeightsError: tensors that are missing, not expected or of another shape, the first five by name.
    """
    with torch.device("meta"):
        built = network()
    expected = built.state_dict()
    wrong = [f"{key} is missing" for key in expected if key not in tensors]
    wrong += [f"{key} is not expected" for key in tensors if key not in expected]
    wrong += [
        f"{key} is {tuple(tensors[key].shape)}, expected {tuple(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise WeightsError(f"{path}: the weights do not fit their network: {'; '.join(wrong[:5])}{more}")
    built.load_state_dict({key: _as(tensors[key], like) for key, like in expected.items()}, assign=True)
    return built.eval().requires_grad_(False)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], *, overwrite: bool) -> None:
    """Write a file, which appears whole or not at all.

    Raises:
        WeightsError: it exists.
    """
    if path.exists() and not overwrite:
        raise WeightsError(f"{path} exists; pass overwrite=True to replace it")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
        partial.chmod(mode)  # save_file makes it unreadable to others
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _as(value: Tensor, like: Tensor) -> Tensor:
    """The value in the precision and the layout (channels last, say) that the network has it in."""
    value = value.to(like.dtype)
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype).copy_(value)
