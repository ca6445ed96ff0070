"""The sklearn head against scikit-learn and LightGBM themselves, and through bytes."""

from __future__ import annotations

import builtins
import json
from importlib.metadata import version

import lightgbm
import numpy as np
import pytest
import torch
import toy_images
from pydantic import ValidationError
from safetensors.torch import load, save
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

import fusionkit_sklearn
import fusionkit_sklearn.head as head_module
from fusionkit.errors import DataError, FusionkitWarning, IntegrityError, PluginError, ResourceError
from fusionkit.model import state_digest
from fusionkit.registry import Registry
from fusionkit.specs import HeadSpec
from fusionkit.training.joined import head_inputs, head_units
from fusionkit.training.stages import plan_steps, run_steps
from fusionkit.training.supervised import predict_logits
from fusionkit_sklearn import SklearnConfig, forests, models

(CARD,) = fusionkit_sklearn.fusionkit_components()
DIMS = {"image": 6, "emr": 3}
MODELS = {
    "logistic_regression": {"C": 0.3},
    "svm": {"C": 2.0},
    "random_forest": {"n_trees": 7, "max_depth": 4, "min_leaf": 2},
    "forest_dissimilarity": {"n_trees": 7, "max_depth": 4, "min_leaf": 2},
    "boosted_trees": {"n_trees": 9, "n_leaves": 5, "min_leaf": 3, "learning_rate": 0.2},
}


def build(output_dim: int = 2, **options):
    return CARD.build(SklearnConfig(**options), DIMS, output_dim)


def rows_of(n_rows: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(n_rows, dim, generator=generator) for name, dim in DIMS.items()}
    return features, dict.fromkeys(DIMS, torch.ones(n_rows, dtype=torch.bool))


def targets_of(features, n_classes: int):
    score = features["image"][:, 0] + 0.5 * features["emr"][:, 1]
    return torch.bucketize(score, torch.linspace(-0.6, 0.6, n_classes + 1)[1:-1])


def joined(features) -> np.ndarray:
    return np.concatenate([features["image"].numpy(), features["emr"].numpy()], 1).astype(np.float64)


def fitted(n_classes: int = 2, n_rows: int = 80, **options):
    features, present = rows_of(n_rows)
    head = build(n_classes, **options)
    targets = targets_of(features, n_classes)
    assert head.fit((features, present), targets, seed=5) is head
    return head, joined(features), targets.numpy()


def dissimilarity_oracle(rows, codes, new) -> np.ndarray:
    """Cao et al. 2018 by scikit-learn's own `apply`, pair by pair."""
    options = {"max_depth": 4, "min_samples_leaf": 2}
    sizes, start = {"known": [], "new": []}, 0
    for number, width in enumerate(DIMS.values()):
        view = slice(start, start + width)
        forest = RandomForestClassifier(7, random_state=5 + number, **options).fit(rows[:, view], codes)
        known = forest.apply(rows[:, view])
        for name, given in (("known", rows), ("new", new)):
            leaves = forest.apply(given[:, view])
            sizes[name].append([[1 - np.mean(one == other) for other in known] for one in leaves])
        start += width
    known, far = (np.mean(sizes[name], axis=0) for name in ("known", "new"))
    assert known.diagonal().tolist() == [0.0] * len(rows)
    return RandomForestClassifier(7, random_state=7, **options).fit(known, codes).predict_proba(far)


def oracle(model: str, rows, codes, new, n_classes: int, **options) -> np.ndarray:
    """What the libraries say, asked as their own manuals do."""
    if model == "logistic_regression":
        theirs = LogisticRegression(C=options["C"], max_iter=10_000).fit(rows, codes)
    elif model == "svm":
        folds = StratifiedKFold(5, shuffle=True, random_state=5)
        svc = SVC(C=options["C"], kernel=options.get("kernel", "rbf"), gamma="scale")
        theirs = CalibratedClassifierCV(svc, cv=folds, ensemble=False)
        if n_classes > 2:
            theirs = OneVsRestClassifier(theirs)
        theirs.fit(rows, codes)
    elif model == "random_forest":
        theirs = RandomForestClassifier(7, max_depth=4, min_samples_leaf=2, random_state=5).fit(rows, codes)
    elif model == "forest_dissimilarity":
        return dissimilarity_oracle(rows, codes, new)
    else:
        theirs = lightgbm.LGBMClassifier(
            n_estimators=9,
            num_leaves=5,
            min_child_samples=3,
            learning_rate=0.2,
            random_state=5,
            deterministic=True,
            force_row_wise=True,
            n_jobs=1,
            verbosity=-1,
        ).fit(rows, codes)
        return theirs.booster_.predict(new) if n_classes > 2 else theirs.predict_proba(np.asarray(new))
    return theirs.predict_proba(new)


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(HeadSpec, "sklearn") is CARD


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
def test_probabilities_are_the_librarys(model, n_classes):
    head, rows, codes = fitted(n_classes, model=model, **MODELS[model])
    features, present = rows_of(40, seed=1)
    found = head(features, present).double().softmax(1).numpy()
    expected = oracle(model, rows, codes, joined(features), n_classes, **MODELS[model])
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.std(0).min() > 0.05, "an oracle that always says the same would prove nothing"


def test_a_linear_machine_is_the_librarys_too():
    head, rows, codes = fitted(model="svm", kernel="linear", C=0.5)
    features, present = rows_of(40, seed=1)
    expected = oracle("svm", rows, codes, joined(features), 2, C=0.5, kernel="linear")
    np.testing.assert_allclose(head(features, present).double().softmax(1).numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("pca", [None, 4])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("model", [model for model in MODELS if model != "forest_dissimilarity"])
def test_after_the_store_every_bit_is_as_before(model, n_classes, pca):
    check_stored(n_classes, model=model, pca=pca, **MODELS[model])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_dissimilarities_are_stored_to_the_bit_too(n_classes):
    check_stored(n_classes, model="forest_dissimilarity", **MODELS["forest_dissimilarity"])


def check_stored(n_classes, **options):
    head, _, _ = fitted(n_classes, **options)
    features, present = rows_of(33, seed=2)
    before = head(features, present)
    state = load(save({name: tensor for name, tensor in head.state_dict().items()}))
    assert {name: tensor.dtype for name, tensor in state.items()} == {"_extra_state": torch.uint8}
    again = build(n_classes, **options)
    again.load_state_dict(state)
    assert torch.equal(again(features, present), before)
    assert torch.equal(again.state_dict()["_extra_state"], head.state_dict()["_extra_state"])


@pytest.mark.parametrize("model", MODELS)
def test_a_fit_is_a_function_of_rows_and_seed(model):
    one, _, _ = fitted(model=model, **MODELS[model])
    two, _, _ = fitted(model=model, **MODELS[model])
    assert torch.equal(one.get_extra_state(), two.get_extra_state())
    features, present = rows_of(50, seed=9)
    two.fit((features, present), targets_of(features, 2), seed=5)
    fresh = build(model=model, **MODELS[model])
    fresh.fit((features, present), targets_of(features, 2), seed=5)
    assert torch.equal(two.get_extra_state(), fresh.get_extra_state()), "an earlier fit is forgotten"


@pytest.mark.parametrize("model", MODELS)
def test_a_fit_does_not_depend_on_the_number_of_threads(model):
    threads, states = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            head, _, _ = fitted(model=model, **MODELS[model])
            states.append(head.get_extra_state())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*states)


@pytest.mark.parametrize("model", MODELS)
def test_a_row_does_not_depend_on_its_neighbours(model):
    head, _, _ = fitted(model=model, **MODELS[model])
    features, present = rows_of(5)
    whole = head(features, present)
    for row in range(5):
        alone = head(
            {n: v[row : row + 1] for n, v in features.items()}, {n: p[:1] for n, p in present.items()}
        )
        torch.testing.assert_close(alone, whole[row : row + 1])
    nothing = head({n: v[:0] for n, v in features.items()}, {n: p[:0] for n, p in present.items()})
    assert nothing.shape == (0, 2)


# what is special about a machine's sigmoid, and about dissimilarities


def platt_rows(sizes, is_class):
    """Samples of so many rows, in an order that is not theirs; of the class or not, by sample."""
    order = np.random.default_rng(0).permutation(sum(sizes))
    return np.repeat(is_class, sizes)[order], np.repeat(np.arange(len(sizes)), sizes)[order]


@pytest.mark.parametrize(
    ("sizes", "n_folds"),
    [([3] * 20, 5), ([4, 1, 6, 2, 1, 9, 3, 3], 4), ([50, 1, 1, 1], 2), ([2, 2, 2, 2, 2, 2, 9, 30], 4)],
)
def test_the_sigmoids_folds_never_part_the_views_of_a_sample(sizes, n_folds):
    is_class, samples = platt_rows(sizes, np.arange(len(sizes)) % 2 == 0)
    folds = models.platt_folds(is_class, samples, 0)
    assert len(folds) == n_folds
    for learned, held in folds:
        assert not set(samples[learned]) & set(samples[held])
        assert set(is_class[learned]) == {False, True}
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(sum(sizes)))
    by_row = StratifiedKFold(2, shuffle=True, random_state=0).split(samples, is_class)
    assert any(set(samples[learned]) & set(samples[held]) for learned, held in by_row)


def test_samples_of_one_row_each_are_held_back_as_rows():
    is_class = np.arange(30) % 3 == 0
    expected = list(StratifiedKFold(5, shuffle=True, random_state=7).split(is_class, is_class))
    for samples in (None, np.arange(100, 130)):
        for (a, b), (c, d) in zip(models.platt_folds(is_class, samples, 7), expected, strict=True):
            assert (a.tolist(), b.tolist()) == (c.tolist(), d.tolist())


def test_a_class_of_one_sample_is_one_sentence():
    features, present = rows_of(12)
    samples = torch.tensor([0] * 3 + [1] * 3 + [2] * 3 + [3] * 3)
    with pytest.raises(DataError) as error:
        build(model="svm").fit((features, present), (samples == 3).long(), seed=0, samples=samples)
    assert str(error.value) == (
        "head: sklearn's svm needs two training samples of every class that can be held apart (there are 1 "
        "of the rarest). Use more data or fewer folds, or another model."
    )


def test_copies_of_a_row_do_not_make_a_machine_sure_of_noise():
    generator = torch.Generator().manual_seed(0)
    one = {name: torch.randn(30, dim, generator=generator) for name, dim in DIMS.items()}
    features = {name: values.repeat_interleave(4, 0) for name, values in one.items()}
    present = dict.fromkeys(DIMS, torch.ones(120, dtype=torch.bool))
    targets = torch.randint(2, (30,), generator=generator).repeat_interleave(4)
    by_row = build(model="svm", C=100.0).fit((features, present), targets, seed=0)
    assert by_row(features, present).softmax(1).amax(1).mean() > 0.9, "every copy has learned from its like"
    head = build(model="svm", C=100.0)
    with pytest.warns(FusionkitWarning) as caught:
        head.fit((features, present), targets, seed=0, samples=torch.arange(30).repeat_interleave(4))
    assert [str(entry.message) for entry in caught] == [
        "head: sklearn's svm answers rows that were held back no better than by chance, so that its "
        "probability is the share of the class for every row. Use more data, another C, or another model."
    ]
    n_yes, n_no = int(targets.sum()), int((1 - targets).sum())
    share = (n_yes * (n_yes + 1) / (n_yes + 2) + n_no / (n_no + 2)) / 120  # Platt's targets
    torch.testing.assert_close(head(features, present).softmax(1)[:, 1], torch.full((120,), share))


def test_dissimilarities_do_not_depend_on_how_many_are_compared_at_once(monkeypatch):
    features, present = rows_of(50, seed=4)
    whole, _, _ = fitted(model="forest_dissimilarity", **MODELS["forest_dissimilarity"])
    monkeypatch.setattr(forests, "PAIRS_AT_ONCE", 1000)
    parts, _, _ = fitted(model="forest_dissimilarity", **MODELS["forest_dissimilarity"])
    assert torch.equal(parts.get_extra_state(), whole.get_extra_state())
    most, real = [], forests.find_leaves
    monkeypatch.setattr(forests, "find_leaves", lambda a, rows: most.append(len(rows)) or real(a, rows))
    found = parts(features, present)
    assert max(most) == 12, "1000 pairs with 80 training rows"
    assert len(most) > 5
    monkeypatch.undo()
    assert torch.equal(found, whole(features, present))


def test_more_rows_than_can_be_compared_are_one_sentence(monkeypatch):
    monkeypatch.setattr(forests, "MOST_ROWS", 79)
    with pytest.raises(ResourceError) as error:
        fitted(model="forest_dissimilarity")
    assert str(error.value) == (
        "head: forest_dissimilarity compares every two of at most 79 training rows (there are 80). Use fewer "
        "views or draws, or random_forest."
    )


def test_principal_components_are_scikit_learns():
    head, rows, codes = fitted(model="logistic_regression", pca=4)
    features, present = rows_of(40, seed=1)
    pca = PCA(4, svd_solver="full").fit(rows)
    theirs = LogisticRegression(max_iter=10_000).fit(pca.transform(rows), codes)
    expected = theirs.predict_proba(pca.transform(joined(features)))
    np.testing.assert_allclose(head(features, present).double().softmax(1).numpy(), expected, atol=1e-6)


def test_there_are_no_more_components_than_the_features_have():
    wide, _, _ = fitted(pca=1000)
    assert wide.arrays["pca.components"].shape == (9, 9)
    few, _, _ = fitted(pca=1000, n_rows=8)
    assert few.arrays["pca.components"].shape == (8, 9)


@pytest.mark.parametrize("model", MODELS)
def test_balanced_classes_weigh_the_same(model):
    features, present = rows_of(120)
    targets = (
        features["image"][:, 0] + torch.randn(120, generator=torch.Generator().manual_seed(3)) > 1.3
    ).long()
    means = []
    for balanced in (False, True):
        head = build(model=model, balanced=balanced, **MODELS[model])
        head.fit((features, present), targets, seed=0)
        means.append(float(head(features, present).softmax(1)[:, 1].mean()))
    assert means[1] > means[0] + 0.04


def test_a_forest_that_is_certain_has_finite_logits():
    head, _, _ = fitted(model="random_forest", n_trees=3, min_leaf=1)
    features, present = rows_of(80)
    logits = head(features, present)
    assert torch.isfinite(logits).all()
    assert float(logits.min()) == pytest.approx(np.log(1e-7))


def test_a_head_that_was_not_fitted_says_so():
    with pytest.raises(PluginError) as error:
        build()(*rows_of(2))
    assert str(error.value) == "sklearn: not fitted yet. Name the head in a fit or train stage."


def test_too_few_rows_of_a_class_are_one_sentence():
    features, present = rows_of(5)
    with pytest.raises(DataError) as error:
        build().fit((features, present), torch.tensor([0, 0, 0, 0, 1]), seed=0)
    assert str(error.value) == (
        "head: sklearn needs two training rows of every class (there are 4, 1). Use more data or fewer "
        "folds; where only one class has a modality, set evaluation.modalities_alone: false."
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-3],
        lambda data: b"\x00" * len(data),
        lambda data: b"no safetensors file",
        lambda data: data.replace(b"__metadata__", b"__metadato__"),
    ],
)
def test_bytes_that_are_not_what_was_written_are_refused(spoil):
    head, _, _ = fitted()
    data = spoil(head.get_extra_state().numpy().tobytes())
    with pytest.raises(IntegrityError, match="what sklearn learned cannot be read"):
        build().set_extra_state(torch.frombuffer(bytearray(data), dtype=torch.uint8))


def test_bytes_of_another_model_are_refused():
    head, _, _ = fitted(model="random_forest", **MODELS["random_forest"])
    with pytest.raises(IntegrityError, match="what sklearn learned is another model's"):
        build(model="svm").set_extra_state(head.get_extra_state())


def test_text_that_lightgbm_did_not_write_is_refused():
    head, _, _ = fitted(model="boosted_trees", **MODELS["boosted_trees"])
    head.arrays["model.text"] = np.frombuffer(b"tree\nno such thing", dtype=np.uint8)
    with pytest.raises(IntegrityError, match="LightGBM cannot read what it wrote"):
        head(*rows_of(2))


@pytest.mark.parametrize(
    ("options", "library"),
    [
        ({"model": "svm"}, "scikit-learn"),
        ({"model": "boosted_trees"}, "lightgbm"),
        ({"pca": 3}, "scikit-learn"),
    ],
)
def test_another_version_of_a_library_is_another_address(monkeypatch, options, library):
    before = state_digest(build(**options))
    assert state_digest(build(**options)) == before
    real = version
    monkeypatch.setattr(head_module, "version", lambda name: "0.0" if name == library else real(name))
    assert state_digest(build(**options)) != before
    # what was learned with it is read all the same
    old, _, _ = fitted(**options)
    monkeypatch.undo()
    new = build(**options)
    new.load_state_dict(old.state_dict())
    assert torch.equal(new(*rows_of(4)), old(*rows_of(4)))


def test_a_regression_that_does_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(models, "MAX_ITERATIONS", 2)
    with pytest.warns(FusionkitWarning) as caught:
        fitted(model="logistic_regression")
    assert [str(entry.message) for entry in caught] == [
        "head: logistic_regression has not converged after 2 iterations. Lower C."
    ]


def test_lightgbm_without_its_system_library_is_one_sentence(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "lightgbm":
            raise OSError("libgomp.so.1: not there")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ResourceError) as error:
        fitted(model="boosted_trees")
    assert str(error.value) == (
        "head: LightGBM cannot be loaded (libgomp.so.1: not there). Install OpenMP (libgomp1), or use "
        "another model."
    )


# options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"model": "svm", "n_trees": 5},
            "n_trees: no option of svm, whose options are C, kernel, gamma, besides pca and balanced",
        ),
        (
            {"model": "forest_dissimilarity", "pca": 3},
            "pca: no option of forest_dissimilarity, whose options are n_trees, max_depth, min_leaf, besides "
            "balanced",
        ),
        (
            {"model": "random_forest", "C": 1.0, "gamma": "scale"},
            "C and gamma: no option of random_forest, whose options are n_trees, max_depth, min_leaf, "
            "besides pca and balanced",
        ),
    ],
)
def test_an_option_of_another_model_is_refused(options, said):
    with pytest.raises(ValidationError) as error:
        SklearnConfig(**options)
    assert said in str(error.value)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_resolved_holds_the_models_own_options_and_is_read_again(model):
    config = SklearnConfig(model=model, **MODELS[model])
    resolved = json.loads(config.model_dump_json())
    common = {"balanced"} if model == "forest_dissimilarity" else {"pca", "balanced"}
    assert set(resolved) == {"model", *common, *fusionkit_sklearn.OWN[model]}
    assert SklearnConfig(**resolved).model_dump() == config.model_dump()


def test_every_option_belongs_to_some_model():
    own = {name for names in fusionkit_sklearn.OWN.values() for name in names}
    assert own | {"model", "pca", "balanced"} == set(SklearnConfig.model_fields)


# in a recipe


@pytest.mark.parametrize("model", MODELS)
def test_a_recipe_fits_it_stores_it_and_predicts_from_the_store(tmp_path, monkeypatch, model):
    registry = toy_images.make_registry()
    registry.add("fusionkit_sklearn", fusionkit_sklearn)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)
    options = {"use": "sklearn", "model": model, **MODELS[model]}
    overrides = [f"head={json.dumps(options)}", "stages.fuse={name: fuse, fit: [head], rows: sample}"]
    experiment = toy_images.make_experiment(tmp_path, *overrides)
    plan = plan_steps(experiment, toy_images.FOLD, 0)
    assert run_steps(experiment, plan) == len(plan.steps)
    found = predict_logits(experiment, plan.origins, toy_images.FOLD.test)
    assert np.isfinite(found).all()
    again = toy_images.make_experiment(tmp_path, *overrides)
    assert run_steps(again, plan_steps(again, toy_images.FOLD, 0)) == 0
    np.testing.assert_array_equal(predict_logits(again, plan.origins, toy_images.FOLD.test), found)
    # the same rows given to the head by hand
    step = plan.steps[-1]
    head = experiment.fresh("head", step.used["head"])
    inputs = head_inputs(experiment, step.used, head_units(experiment, step))
    outcomes = [experiment.manifest.outcomes[row] for row in step.rows]
    head.fit(inputs, torch.from_numpy(experiment.task.encode(outcomes)), seed=step.seed)
    assert torch.equal(head.get_extra_state(), again.fresh("head", plan.origins["head"]).get_extra_state())
