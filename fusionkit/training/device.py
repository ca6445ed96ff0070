"""Decides device, precision, memory format and threads."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from fusionkit.errors import RecipeError
from fusionkit.recipe.schema import TrainingNode


@dataclass(frozen=True)
class Device:
    """Where and how precisely things are computed.

    Args:
        type: cpu or cuda.
        precision: fp32 or bf16; bf16 for the encoders of file inputs, records and heads stay fp32.
        threads: CPU threads.
        reason: Why this precision.
    """

    type: str
    precision: str
    threads: int
    reason: str

    @property
    def torch(self) -> torch.device:
        """The torch device."""
        return torch.device(self.type)

    def place(self, module: nn.Module) -> nn.Module:
        """Moves a module there; convolutions in channels_last."""
        module = module.to(self.torch)
        if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
            module = module.to(memory_format=torch.channels_last)
        return module

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Multiplies in bf16 inside, where that is the precision."""
        with torch.autocast(self.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def identity(self) -> dict[str, str]:
        """Returns what results depend on, for addresses."""
        return {"device": self.type, "precision": self.precision, "torch": torch.__version__}


def cpu_has_bf16() -> bool:
    """Says whether this CPU multiplies bf16 natively (AMX, AVX512-BF16)."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def choose_device(options: TrainingNode) -> Device:
    """Decides by the recipe and the hardware; raises RecipeError for a device that is not there."""
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise RecipeError("training.device: no CUDA device is available (cuda). Say auto or cpu.")
    type_ = "cuda" if has_cuda and options.device != "cpu" else "cpu"
    if options.precision == "auto":
        native = torch.cuda.is_bf16_supported() if type_ == "cuda" else cpu_has_bf16()
        precision = "bf16" if native else "fp32"
        reason = f"{type_} {'multiplies' if native else 'does not multiply'} bf16 natively"
    else:
        precision, reason = options.precision, "the recipe says so"
    threads = options.threads or max(1, _n_cores() // options.jobs)
    torch.set_num_threads(threads)
    return Device(type_, precision, threads, reason)


def _n_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine() -> dict[str, object]:
    """Returns what else could matter to a number: versions, processor, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
