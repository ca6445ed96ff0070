"""Timing in pairs: what is compared runs in turn, so that a busy moment of the machine hits both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def seconds_of(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Returns each run's seconds, round by round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs) if number % 2 == 0 else reversed(runs):
            seconds[name].append(seconds_of(runs[name]))
    return seconds


def summary(values: list[float]) -> dict[str, Any]:
    return {"median": round(median(values), 4), "low": round(min(values), 4), "high": round(max(values), 4)}


def rates(n: Mapping[str, int], seconds: Mapping[str, list[float]]) -> dict[str, list[float]]:
    return {name: [n[name] / each for each in values] for name, values in seconds.items()}


def ratio(over: list[float], under: list[float]) -> dict[str, Any]:
    """Returns the median of the ratios of pairs, and how far they spread."""
    return summary([a / b for a, b in zip(over, under, strict=True)])
