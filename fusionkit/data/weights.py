"""Reads a model's weights from a safetensors file; no other format is ever opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from torch import Tensor


def load_weights(
    path: str | Path,
    prefix: str = "",
    expected: Mapping[str, Tensor] | None = None,
    beyond: Collection[str] = (),
) -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, the prefix removed.

    Args:
        path: A safetensors file.
        prefix: What the names of the wanted tensors start with; others are left out.
        expected: A module's `state_dict()`: names and shapes must be those.
        beyond: Names that the file may have beyond those, such as a classifier's; they are left out.

    Raises:
        DataError: The file is not there.
        IntegrityError: It is not a safetensors file, is truncated, or holds other tensors than expected.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise IntegrityError(
            f"{path}: only .safetensors weights are read, never a pickle. Convert the file first."
        )
    if not path.is_file():
        raise DataError(
            f"{path}: there is no such weights file. Set --data-root or $FUSIONKIT_DATA, or fetch it."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path}: not a whole safetensors file ({error}). Fetch it again.") from None
    found = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    found = {name: tensor for name, tensor in found.items() if name not in beyond}
    if expected is not None:
        _check(path, prefix, found, expected)
    return found


def _check(path: Path, prefix: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raises IntegrityError that says how a file's tensors differ from what a module has."""
    absent = [prefix + name for name in expected if name not in found]
    unknown = [prefix + name for name in found if name not in expected]
    moved = [
        f"{prefix}{name} is {tuple(found[name].shape)}, and {tuple(tensor.shape)} is due"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = [
        *([f"{len(absent)} of {len(expected)} tensors are absent, such as {absent[0]}"] if absent else []),
        *([f"{len(unknown)} are unknown, such as {unknown[0]}"] if unknown else []),
        *moved[:1],
    ]
    if problems:
        said = "; ".join(problems)
        raise IntegrityError(f"{path}: weights of another architecture ({said}). Name the file of this one.")
