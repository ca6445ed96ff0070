"""What tests share: a registry of toys."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import toys

from fusionkit.registry import Registry


@pytest.fixture(scope="session")
def toy_registry() -> Registry:
    registry = Registry()
    registry.add("toys", toys)
    return registry
