"""Every component that comes along, and those of the examples, keep the contract."""

from __future__ import annotations

from pathlib import Path

from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS
from fusionkit.testing import parametrize_with_checks

EXAMPLES = Path(__file__).parent.parent / "examples"
REGISTRY = Registry.discover([str(path) for path in sorted(EXAMPLES.glob("*.py"))])
CARDS = [card for kind in COMPONENT_KINDS for card, _ in REGISTRY.cards(kind)]


@parametrize_with_checks(CARDS, expected_failures={})
def test_conformance(case, check):
    check(case)


def test_no_plugin_is_left_out():
    assert REGISTRY.broken == {}
    assert len(CARDS) >= 20
