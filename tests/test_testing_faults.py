"""Every check of the conformance kit catches a component that breaks its clause, and no other check does."""

from __future__ import annotations

import re
from functools import cache

import breaching_toys
import broken_heavy
import pytest

from fusionkit.testing.kit import every_check, pair

assert broken_heavy  # a card says that its `build` stands there


@cache
def look_at_good(name):
    return [(check.name, *check.look(case)) for case, check in pair(breaching_toys.GOOD[name])]


@pytest.mark.parametrize("name", breaching_toys.GOOD)
def test_a_card_without_fault_breaks_no_clause(name):
    assert [found for found in look_at_good(name) if found[1] == "fail"] == []


def test_every_check_has_a_fault_and_passes_somewhere_without_it():
    names = {check.name for check in every_check()}
    passed = {
        check for name in breaching_toys.GOOD for check, status, _ in look_at_good(name) if status == "pass"
    }
    assert ({fault.check for fault in breaching_toys.FAULTS}, passed) == (names, names)


@pytest.mark.parametrize("fault", breaching_toys.FAULTS, ids=lambda fault: f"{fault.check}: {fault.what}")
def test_a_fault_fails_its_check_with_its_sentence_and_no_other(fault):
    failed = {}
    for case, check in pair(fault.card):
        status, reason = check.look(case)
        if status == "fail":
            failed.setdefault(check.name, reason)
    assert set(failed) == {fault.check, *fault.also}
    assert re.sub(r"^toy(\.\d)?(\.encoder)?: ", "", failed[fault.check]).startswith(fault.sentence)


if __name__ == "__main__":
    print("| check | fault | also fails |\n|---|---|---|")
    for fault in sorted(
        breaching_toys.FAULTS, key=lambda fault: [c.name for c in every_check()].index(fault.check)
    ):
        failed = {check.name for case, check in pair(fault.card) if check.look(case)[0] == "fail"}
        others = (
            "; ".join(f"`{name}`: {fault.also[name]}" for name in sorted(failed - {fault.check})) or "none"
        )
        caught = f"`{fault.check}`" if fault.check in failed else f"`{fault.check}` DOES NOT CATCH"
        print(f"| {caught} | {fault.what} | {others} |")
