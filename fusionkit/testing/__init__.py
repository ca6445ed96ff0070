"""The conformance kit: every clause of a component's contract as a check. Imports nothing heavy."""

from fusionkit.testing.kit import parametrize_with_checks

__all__ = ["parametrize_with_checks"]
