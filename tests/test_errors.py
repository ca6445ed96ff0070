import pytest

from fusionkit import errors


def test_each_class_has_its_own_exit_code():
    codes = {kind.__name__: kind.exit_code for kind in errors.FusionkitError.__subclasses__()}
    assert codes == {
        "UsageError": 2,
        "RecipeError": 3,
        "DataError": 4,
        "PluginError": 5,
        "IntegrityError": 6,
        "TrainingError": 7,
        "ResourceError": 8,
    }


@pytest.mark.parametrize(
    ("given", "problems"), [("one", ("one",)), (["one", "two"], ("one", "two")), ([], ())]
)
def test_an_error_carries_every_problem(given, problems):
    error = errors.DataError(given)
    assert error.problems == problems
    assert str(error) == "\n".join(problems)


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("coruption", ["corruption", "hidden"], "Did you mean 'corruption'? Known: corruption, hidden."),
        ("xyz", ["b", "a", "a"], "Known: a, b."),
        ("x", [], "None is known."),
        ("head.us", ["head.use", "seed"], "Did you mean 'head.use'? Known: head.use, seed."),
    ],
)
def test_suggest_names_the_nearest_and_what_is_known(name, known, hint):
    assert errors.suggest(name, known) == hint


def test_suggest_names_no_more_than_its_limit():
    assert errors.suggest("z", "abcd", limit=2) == "Known: a, b and 2 more."


def test_only_one_is_not_plural():
    assert [errors.counted(n, "more row") for n in (0, 1, 2)] == ["0 more rows", "1 more row", "2 more rows"]
