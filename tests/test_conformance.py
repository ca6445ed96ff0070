"""Every component that comes along, and those of the examples, keep the contract, as far as its examples go.

`slide_bag` has no small files, and `transformers_text`, which needs a folder with a model, no example:
tests/plugins make both, and run the whole kit there.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS
from fusionkit.testing import parametrize_with_checks

EXAMPLES = Path(__file__).parent.parent / "examples"
REGISTRY = Registry.discover(
    [str(path) for pattern in ("*.py", "*/fusionkit_*") for path in sorted(EXAMPLES.glob(pattern))]
)
EXTRAS = {"slide_bag": "openslide"}
"""Components that need what an extra installs."""
CARDS = [
    card
    for kind in COMPONENT_KINDS
    for card, _ in REGISTRY.cards(kind)
    if card.name not in EXTRAS or find_spec(EXTRAS[card.name]) is not None
]


REASONS = {
    "hashed_words.1-check_refuses_before_fit": "without idf it has nothing to learn, and answers at once",
    "transformers_text-check_card": "it reads a model's folder, which no offline example can bring",
}


@parametrize_with_checks(CARDS, expected_failures=REASONS)
def test_conformance(case, check):
    check(case)


def test_no_plugin_is_left_out():
    assert REGISTRY.broken == {}
    assert len(CARDS) >= 20
