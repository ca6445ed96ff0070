"""Reads a model's weights from a safetensors file; no other format is ever opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit.errors import DataError, IntegrityError

if TYPE_CHECKING:
    from torch import Tensor


def load_weights(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors whose names start with `prefix`, the prefix removed.

    Raises:
        DataError: The file is not there.
        IntegrityError: It is not a safetensors file, or is truncated.
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
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
