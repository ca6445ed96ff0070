"""The contract, clause by clause: what fusionkit's docs/contract.md says, tried on the card's examples."""

from fusionkit.testing import parametrize_with_checks
from fusionkit_my_source import fusionkit_components


@parametrize_with_checks(fusionkit_components())
def test_conformance(case, check):
    check(case)
