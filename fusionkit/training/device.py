"""Decides device, precision, memory format and threads."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import RecipeError
from fusionkit.recipe.schema import TrainingNode

COMPILED = ("forward", "pretraining_features", "tokens")
"""What an encoder computes."""


@dataclass(frozen=True)
class Device:
    """Where and how precisely things are computed.

    Args:
        type: cpu or cuda.
        precision: fp32 or bf16; bf16 for the encoders of file inputs, records and heads stay fp32.
        threads: CPU threads.
        reason: Why this precision.
        compiles: Whether encoders of files go through torch.compile.
    """

    type: str
    precision: str
    threads: int
    reason: str
    compiles: bool = False

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

    def pin(self, raw: Any) -> Any:
        """Puts a raw batch, and what its containers hold, where a GPU can fetch it without anybody waiting.

        It costs a copy, so the thread that reads ahead does it; `move` then only starts the transfer.
        """
        if self.type != "cuda":
            return raw
        return _for_each_tensor(
            raw, lambda tensor: tensor.pin_memory() if tensor.device.type == "cpu" else tensor
        )

    def move(self, raw: Any) -> Any:
        """Moves a raw batch there, its containers too; what computes with it waits on the same stream."""
        return _for_each_tensor(raw, lambda tensor: tensor.to(self.torch, non_blocking=True))

    def compile(self, path: str, encoder: nn.Module) -> nn.Module:
        """Puts an encoder's computations through torch.compile, if the recipe says so.

        Raises:
            RecipeError: Later, when it first computes: it cannot be compiled whole, or not on this machine.
        """
        if self.compiles:
            for name in COMPILED:
                if callable(method := getattr(encoder, name, None)):
                    # `fullgraph`: the whole of it, or an error; else torch skips what it cannot compile
                    setattr(encoder, name, _with_sentence(path, torch.compile(method, fullgraph=True)))
        return encoder

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Multiplies in bf16 inside, where that is the precision."""
        with torch.autocast(self.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def identity(self) -> dict[str, str]:
        """Returns what results depend on, for addresses."""
        identity = {"device": self.type, "precision": self.precision, "torch": torch.__version__}
        # named only where it is so: everything learned before the option was there keeps its address
        return identity | ({"compiled": "yes"} if self.compiles else {})


def _for_each_tensor(raw: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(raw, Tensor):
        return change(raw)
    if isinstance(raw, Mapping):
        return {name: _for_each_tensor(value, change) for name, value in raw.items()}
    if isinstance(raw, list | tuple):
        return type(raw)(_for_each_tensor(value, change) for value in raw)
    return raw


def _with_sentence(path: str, compute: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a compiled function that says in one sentence why it cannot be compiled."""

    def computed(*inputs: Any) -> Any:
        try:
            return compute(*inputs)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(
                f"training.compile: {path} cannot be compiled here ({reason}). Say `compile: false`."
            ) from error

    return computed


def cpu_has_bf16() -> bool:
    """Says whether this CPU multiplies bf16 natively (AMX, AVX512-BF16)."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def choose_device(options: TrainingNode, *, n_jobs: int = 1) -> Device:
    """Decides by the recipe and the hardware; raises RecipeError for a device that is not there.

    Args:
        options: What the recipe says.
        n_jobs: How many processes share the cores: those that there is work for, however many are allowed.
    """
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
    if type_ == "cuda":
        _make_deterministic()
    threads = options.threads or max(1, n_cores() // n_jobs)
    torch.set_num_threads(threads)
    return Device(type_, precision, threads, reason, options.compile)


def n_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _make_deterministic() -> None:
    """Asks CUDA for the same bits every time; an operation that cannot do so warns, and goes on.

    fp32 means fp32 in convolutions too, where torch's default is tf32 with its 10 bits.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False  # which algorithm is quickest may change from run to run
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling memory that nothing reads would cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


VARIABLES = re.compile(
    r"(OMP|GOMP|KMP|MKL|ONEDNN|DNNL|OPENBLAS|BLIS|VECLIB|ATEN|TORCH|PYTORCH|CUDA|CUDNN|CUBLAS|NVIDIA|NCCL"
    r"|POLARS|FUSIONKIT)_\w+|PYTHONHASHSEED|LD_PRELOAD"
)
"""Environment variables that can change a number, a speed, or what is read."""


def describe_machine() -> dict[str, object]:
    """Returns what the machine is: versions, processor, device."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def describe_environment(device: Device) -> dict[str, object]:
    """Returns what else could matter to a number: the machine, threads, switches, variables, packages."""
    build = torch.__config__.show().splitlines()[1:]
    return {
        **describe_machine(),
        "processor_name": _processor_name(),
        "device": vars(device),
        "threads": {"torch": torch.get_num_threads(), "interop": torch.get_num_interop_threads()},
        "libraries": [line.strip(" -") for line in build if "Build settings" not in line],
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        "switches": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "matmul_precision": torch.get_float32_matmul_precision(),
        },
        "variables": {name: os.environ[name] for name in sorted(os.environ) if VARIABLES.fullmatch(name)},
        "packages": {found.name: found.version for found in importlib.metadata.distributions()},
    }


def _processor_name() -> str:
    """Returns the processor's name; of Linux from the kernel, since Python does not know it there."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
