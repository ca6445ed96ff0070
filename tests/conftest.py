"""What tests share: a registry of toys, and which tests run where."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import faults
import toys

from fusionkit.registry import Registry

# what a shell starts in the background ignores Ctrl-C, and so would everything that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def toy_registry() -> Registry:
    registry = Registry()
    registry.add("toys", toys)
    return registry


@pytest.fixture(scope="session")
def nursery() -> Iterator[faults.Nursery]:
    with faults.Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def undisturbed(nursery: faults.Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("faults") / "undisturbed"
    child = nursery.run(folder)
    assert child.poll() == 0, child.err()
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not os.environ.get("FUSIONKIT_SLOW"):
        _skip(items, "slow", "slow: runs where FUSIONKIT_SLOW=1 (make slow)")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch  # only here: it takes seconds, and few selections need it

        if not torch.cuda.is_available():
            _skip(items, "gpu", "gpu: there is no CUDA device")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))
