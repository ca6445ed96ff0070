"""The page of the contract, docs/contract.md, made of the checks' docstrings: `make contract` rewrites it."""

from __future__ import annotations

import importlib
import textwrap
from collections.abc import Iterator

from fusionkit.testing.case import Check
from fusionkit.testing.kit import ROOMS, every_check

WIDTH = 118
HEAD = """\
# The contract

What a component promises. Each clause is the docstring of a check. `fusionkit check NAME` tries them on
each of the card's `examples`; [plugins.md](plugins.md#checking) shows the same as a test. `make contract`
writes this page.
"""


def contract_page() -> str:
    """Returns the page, in Markdown."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    checks = every_check()
    for room in ROOMS:
        module = importlib.import_module(f"fusionkit.testing.{room}")
        yield f"## {str(module.__doc__).strip().rstrip('.')}\n"
        for check in checks:
            if getattr(module, check.name, None) is check:
                text = f"**`{check.name}`** ({_holds_for(check)}). {' '.join(check.clause.split())}"
                yield textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False) + "\n"


def _holds_for(check: Check) -> str:
    kinds = ", ".join(f"{kind}s" for kind in check.kinds)
    if check.learns:
        kinds += f" that learn: {' or '.join(f'`{learns}`' for learns in check.learns)}"
    return kinds + ("; the card" if check.of_card else "")


if __name__ == "__main__":
    print(contract_page(), end="")
