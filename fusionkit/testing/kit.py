"""Which checks there are, in order, and how they are run: by pytest, or one after the other."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusionkit.errors import UsageError, suggest
from fusionkit.specs import Spec

if TYPE_CHECKING:
    from fusionkit.testing.case import Case, Check

ROOMS = ("cards", "parts", "learning", "encoders", "heads", "sources")
"""The modules of this package with checks."""


def every_check() -> list[Check]:
    """Returns every check, in the order of the contract."""
    from fusionkit.testing.case import Check

    modules = [importlib.import_module(f"fusionkit.testing.{room}") for room in ROOMS]
    return [value for module in modules for value in vars(module).values() if isinstance(value, Check)]


def pair(card: Spec) -> list[tuple[Case, Check]]:
    """Returns what is to be looked at of a card: the card itself, then each of its examples."""
    from fusionkit.testing.case import Case

    cases = [Case(card), *(Case(card, example) for example in range(len(card.examples)))]
    return [(case, each) for case in cases for each in every_check() if each.is_due(case)]


def parametrize_with_checks(
    cards: Sequence[Spec], *, expected_failures: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], Any]:
    """Makes a pytest test of every clause of the contract: `def test_conformance(case, check): check(case)`.

    A check that does not apply is skipped with its reason. One that is expected to fail and does not is a
    failure.

    Args:
        cards: The cards to check, each with all its examples.
        expected_failures: Name of a check, or `<component>.<example>-<check>` -> why it may fail.

    Raises:
        UsageError: A check is expected to fail that there is not.
    """
    import pytest

    from fusionkit.testing.case import BreachError

    expected = dict(expected_failures or {})
    pairs = [found for card in cards for found in pair(card)]
    names = {each.name for _, each in pairs} | {f"{case.id}-{each.name}" for case, each in pairs}
    problems = [
        f"expected_failures: there is no check called '{name}'. {suggest(name, names)}"
        for name in expected
        if name not in names
    ]
    if problems:
        raise UsageError(problems)
    parameters = []
    for case, each in pairs:
        key = f"{case.id}-{each.name}"
        reason = expected.get(key, expected.get(each.name))
        marks = [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=BreachError)]
        looked = _as_test(each) if reason is None else each
        parameters.append(pytest.param(case, looked, id=key, marks=marks))
    mark: Any = pytest.mark.parametrize(("case", "check"), parameters)
    return lambda function: mark(function)


def _as_test(check: Check) -> Callable[[Case], None]:
    """Skips what does not apply; one that is expected to fail must apply, too, and is not wrapped."""

    def run(case: Case) -> None:
        import pytest

        from fusionkit.testing.case import DoesNotApplyError

        try:
            check(case)
        except DoesNotApplyError as reason:
            pytest.skip(f"does not apply: {reason}")

    return run
