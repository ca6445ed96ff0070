"""The contract, clause by clause, and what is this package's own: which rows are read, who has a say."""

import pytest
import torch

from fusionkit import DataError, SourceContext
from fusionkit.testing import parametrize_with_checks
from fusionkit_skin import ExpertsConfig, SkinConfig, fusionkit_components, write_example_files
from fusionkit_skin.experts import ProductOfExperts
from fusionkit_skin.lesions import SkinLesions


@parametrize_with_checks(fusionkit_components())
def test_conformance(case, check):
    check(case)


def read(folder, config):
    return SkinLesions(config).read(SourceContext(folder, folder))


def test_rows_of_other_diagnoses_are_left_out_and_counted(tmp_path):
    config = SkinConfig(simulated=True)
    write_example_files(config, tmp_path)
    table = tmp_path / config.folder / "metadata.csv"
    table.write_text(table.read_text().replace("bkl", "df", 1).replace("face", "elbow"))
    manifest = read(tmp_path, config)
    assert (len(manifest.samples), manifest.dropped, manifest.is_simulated) == (11, {"dx=df": 1}, True)
    assert set(manifest.outcomes) == {"nevus", "keratosis", "melanoma"}
    assert manifest.cells_of(0, ["age", "sex", "site"]) == {"age": None, "sex": "female", "site": "abdomen"}
    # left for the audit, which knows the list and names the row: nothing is lost in silence
    assert manifest.cells_of(4, ["site"]) == {"site": "elbow"}
    assert "elbow" not in manifest.schema["site"].values


def test_a_table_without_its_columns_is_refused(tmp_path):
    config = SkinConfig()
    write_example_files(config, tmp_path)
    table = tmp_path / config.folder / "metadata.csv"
    table.write_text(table.read_text().replace(",age,", ",years,").replace(",dx,", ",label,"))
    with pytest.raises(DataError) as caught:
        read(tmp_path, config)
    assert caught.value.problems == (f"{table}: no column dx, age. Give HAM10000's columns.",)


def test_probabilities_are_multiplied_over_those_present():
    head = ProductOfExperts(ExpertsConfig(), {"a": 2, "b": 3}, 3)
    a, b = torch.randn(4, 2), torch.randn(4, 3)
    present = {"a": torch.tensor([1, 1, 0, 0]), "b": torch.tensor([1, 0, 1, 0])}
    out = head({"a": a, "b": b}, present).softmax(1)
    of_a, of_b = head.experts["a"](a).softmax(1), head.experts["b"](b).softmax(1)
    product = of_a * of_b
    torch.testing.assert_close(out[0], product[0] / product[0].sum())
    torch.testing.assert_close(out[1], of_a[1])
    torch.testing.assert_close(out[2], of_b[2])
    torch.testing.assert_close(out[3], torch.full((3,), 1 / 3))
