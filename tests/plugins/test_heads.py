from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_images
from torch import nn

import fusionkit_heads
from fusionkit.core_parts import Absent
from fusionkit.errors import PluginError
from fusionkit.model import FusionModel, ModalityBatch
from fusionkit.registry import Registry
from fusionkit.specs import HeadSpec
from fusionkit.training.stages import plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

CARDS = {card.name: card for card in fusionkit_heads.fusionkit_components()}


def build(name: str = "concat_mlp", dims: dict[str, int] | None = None, output_dim: int = 2, **options):
    torch.manual_seed(0)
    return CARDS[name].build(CARDS[name].config(**options), dims or {"image": 1280, "emr": 580}, output_dim)


def features_of(dims: dict[str, int], n_rows: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    everywhere = torch.ones(n_rows, dtype=torch.bool)
    return {name: torch.randn(n_rows, dim) for name, dim in dims.items()}, dict.fromkeys(dims, everywhere)


def test_the_card_is_found_through_the_entry_point():
    registry = Registry.discover()
    assert registry.card(HeadSpec, "concat_mlp") is CARDS["concat_mlp"]


def test_the_papers_head_is_1860_500_100_2():
    head = build(hidden=(500, 100))
    linear = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (1860, 500),
        (500, 100),
        (100, 2),
    ]
    assert sum(parameter.numel() for parameter in head.parameters()) == 980_802


@pytest.mark.parametrize("options", [{}, {"hidden": ()}, {"hidden": (3,), "activation": "tanh"}])
@pytest.mark.parametrize("output_dim", [1, 2, 5])
@pytest.mark.parametrize("dims", [{"a": 3}, {"a": 3, "b": 1, "c": 7}])
def test_a_head_maps_every_modality_to_the_tasks_outputs(options, output_dim, dims):
    head = build(dims=dims, output_dim=output_dim, **options).eval()
    features, present = features_of(dims, 4)
    assert head(features, present).shape == (4, output_dim)
    nothing, nowhere = features_of(dims, 0)
    assert head(nothing, nowhere).shape == (0, output_dim)


def test_features_are_joined_in_recipe_order_whatever_the_order_they_come_in():
    dims = {"b": 2, "a": 3}
    head = build(dims=dims, hidden=()).eval()
    features, present = features_of(dims, 4)
    out = head(features, present)
    assert torch.equal(head(dict(reversed(features.items())), present), out)
    linear = next(layer for layer in head.modules() if isinstance(layer, nn.Linear))
    assert torch.equal(out, linear(torch.cat([features["b"], features["a"]], 1)))


def test_every_hidden_layer_has_activation_and_dropout():
    head = build(dims={"a": 3}, hidden=(5, 4), dropout=0.3, input_dropout=0.1, activation="tanh")
    kinds = [type(layer) for layer in head.layers]
    assert kinds == [nn.Dropout, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear, nn.Tanh, nn.Dropout, nn.Linear]
    assert [layer.p for layer in head.layers if isinstance(layer, nn.Dropout)] == [0.1, 0.3, 0.3]


def test_rows_do_not_depend_on_their_neighbours_and_nothing_is_random_in_evaluation():
    dims = {"a": 3, "b": 2}
    head = build(dims=dims).eval()
    features, present = features_of(dims, 6)
    out = head(features, present)
    assert torch.equal(head(features, present), out)
    for row in range(6):
        one = {name: part[row : row + 1] for name, part in features.items()}
        torch.testing.assert_close(head(one, {n: p[:1] for n, p in present.items()}), out[row : row + 1])
    head.train()
    assert not torch.equal(head(features, present), head(features, present))


def test_every_feature_reaches_every_output():
    dims = {"a": 3, "b": 2}
    head = build(dims=dims, hidden=(64,)).eval()
    features, present = features_of(dims, 1)
    for part in features.values():
        part.requires_grad_(True)
    head(features, present)[0, 1].backward()
    assert all((part.grad != 0).all() for part in features.values())


# decision


def by_hand(head, features, present, weights):
    """The weighted mean of the present modalities' probabilities, row by row."""
    rows = []
    for row in range(len(next(iter(features.values())))):
        here = [name for name in features if bool(present[name][row])]
        total = sum(weights[name] for name in here)
        each = [
            head.classifiers[f"of_{n}"](features[n][row : row + 1]).softmax(1)[0] * weights[n] / total
            for n in here
        ]
        rows.append(torch.stack(each).sum(0))
    return torch.stack(rows)


@pytest.mark.parametrize("rule", ["average", "weighted"])
def test_decisions_are_averaged_over_the_modalities_that_are_there(rule):
    dims = {"image": 5, "emr": 3, "text": 2}
    head = build("decision", dims, 3, hidden=(4,), rule=rule).eval()
    weights = dict.fromkeys(dims, 1.0)
    if rule == "weighted":
        head.log_weights.data = torch.tensor([0.3, -1.0, 2.0])
        weights = dict(zip(dims, head.log_weights.exp().tolist(), strict=True))
    features, present = features_of(dims, 4)
    present = {name: there.clone() for name, there in present.items()}
    present["image"][1] = present["emr"][1] = present["text"][2] = False
    found = head(features, present)
    torch.testing.assert_close(found.exp(), by_hand(head, features, present, weights))
    torch.testing.assert_close(found.exp().sum(1), torch.ones(4))


def test_a_row_with_one_modality_has_that_ones_answer_and_nothing_of_the_others():
    dims = {"image": 5, "emr": 3}
    head = build("decision", dims, hidden=(4,)).eval()
    features, present = features_of(dims, 3)
    present = {"image": torch.zeros(3, dtype=torch.bool), "emr": present["emr"]}
    alone = head.classifiers["of_emr"](features["emr"]).log_softmax(1)
    torch.testing.assert_close(head(features, present), alone)
    features["image"] = features["image"] + 100
    torch.testing.assert_close(head(features, present), alone)


def test_the_weights_of_decisions_are_learned_only_where_asked_for():
    dims = {"a": 3, "b": 2}
    features, present = features_of(dims, 4)
    for rule, n_more in (("average", 0), ("weighted", 1)):
        head = build("decision", dims, hidden=(), rule=rule)
        assert len(list(head.parameters())) == 4 + n_more
        head(features, present)[:, 0].sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


def test_stacked_decisions_are_a_linear_layer_on_all_log_probabilities():
    dims = {"image": 5, "emr": 3}
    head = build("decision", dims, 3, hidden=(4,), rule="stacked").eval()
    features, present = features_of(dims, 4)
    present = {name: there.clone() for name, there in present.items()}
    present["emr"][2] = False
    columns = []
    for name in dims:
        logits = head.classifiers[f"of_{name}"](features[name]).detach().numpy().astype(np.float64)
        centred = logits - logits.mean(
            1, keepdims=True
        )  # the same of log probabilities: they differ by a shift
        columns.append(np.where(present[name].numpy()[:, None], centred, 0))
    at_first = head(features, present).detach().numpy()
    np.testing.assert_allclose(at_first, sum(columns), atol=1e-6)
    torch.nn.init.normal_(head.second.weight)
    torch.nn.init.normal_(head.second.bias)
    weight, bias = head.second.weight.detach().numpy(), head.second.bias.detach().numpy()
    found = head(features, present).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(columns, 1) @ weight.T + bias, atol=1e-5)


def test_modalities_may_have_any_name():
    dims = {"keys": 3, "forward": 2}
    features, present = features_of(dims, 4)
    for name in ("decision", "bimodal_autoencoder"):
        head = build(name, dims, **({"finetune": True} if name == "bimodal_autoencoder" else {})).eval()
        assert head(features, present).shape == (4, 2)


# bimodal_autoencoder


def bimodal(dims=None, **options):
    return build("bimodal_autoencoder", dims or {"image": 5, "emr": 3}, hidden=6, code=4, **options)


def test_the_loss_restores_all_from_all_and_from_each_alone():
    head = bimodal()
    features, present = features_of({"image": 5, "emr": 3}, 7)
    found = head.loss((features, present), torch.Generator())
    errors = []
    for kept in (("image", "emr"), ("image",), ("emr",)):
        given = {n: v if n in kept else torch.zeros_like(v) for n, v in features.items()}
        parts = torch.cat([head.encoders[f"of_{n}"](given[n]) for n in ("image", "emr")], 1)
        code = head.joint(parts)
        each = [nn.functional.mse_loss(head.decoders[f"of_{n}"](code), features[n]) for n in features]
        errors.append(sum(each) / 2)
    torch.testing.assert_close(found, sum(errors) / 3)


def test_what_is_absent_is_neither_restored_nor_restored_from():
    head = bimodal()
    features, present = features_of({"image": 5, "emr": 3}, 6)
    present = {"image": torch.tensor([True] * 4 + [False] * 2), "emr": present["emr"]}
    features["image"][4:] = 0
    only = {name: values[:4] for name, values in features.items()}
    there = {name: values[:4] for name, values in present.items()}

    # the image's decoder learns from the rows that have one, as if there were no others
    head.zero_grad()
    head.loss((features, present), torch.Generator()).backward()
    whole = head.decoders["of_image"][2].weight.grad.clone()
    head.zero_grad()
    head.loss((only, there), torch.Generator()).backward()
    torch.testing.assert_close(head.decoders["of_image"][2].weight.grad, whole)


def test_one_modality_alone_is_an_autoencoder():
    head = bimodal({"emr": 3})
    features, present = features_of({"emr": 3}, 7)
    restored = head.decoders["of_emr"](head.code(features))
    expected = nn.functional.mse_loss(restored, features["emr"])
    torch.testing.assert_close(head.loss((features, present), torch.Generator()), expected)


@pytest.mark.parametrize("finetune", [False, True])
def test_a_train_stage_teaches_the_classifier_and_the_code_only_where_asked_for(finetune):
    head = bimodal(finetune=finetune, classifier=(3,))
    features, present = features_of({"image": 5, "emr": 3}, 7)
    head.loss((features, present), torch.Generator()).backward()
    learned = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
    assert learned == {"encoders", "joint", "decoders"}
    head.zero_grad()
    head(features, present)[:, 0].sum().backward()
    learned = {name.split(".")[0] for name, p in head.named_parameters() if p.grad is not None}
    assert learned == ({"classifier", "encoders", "joint"} if finetune else {"classifier"})


def test_a_code_that_was_never_learned_is_said():
    features, present = features_of({"image": 5, "emr": 3}, 2)
    head = bimodal()
    with pytest.raises(PluginError) as error:
        head(features, present)
    assert str(error.value) == (
        "bimodal_autoencoder: its code was never learned. Name the head in a fit stage before the train "
        "stage, or set finetune: true."
    )
    head.loss((features, present), torch.Generator())
    again = bimodal()
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(again(features, present), head(features, present))


def test_restoring_is_learned():
    """On two modalities that share one cause, each is restored from the other far better than by its mean."""
    generator = torch.Generator().manual_seed(0)
    cause = torch.randn(256, 1, generator=generator)
    features = {"image": cause @ torch.ones(1, 5), "emr": cause @ torch.ones(1, 3)}
    present = dict.fromkeys(features, torch.ones(256, dtype=torch.bool))
    head = bimodal(activation="tanh")
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        head.loss((features, present), generator).backward()
        optimizer.step()
    given = {"image": features["image"], "emr": torch.zeros(256, 3)}
    restored = head.decoders["of_emr"](head.code(given))
    error = nn.functional.mse_loss(restored, features["emr"]) / features["emr"].var()
    assert float(error.detach()) < 0.2


# in a recipe

STAGES = """\
  - name: restore
    fit: [head]
    rows: sample
    epochs: 2
    batch_size: 8
  - name: fuse
    train: [head]
    epochs: 2
    batch_size: 8
"""


@pytest.mark.parametrize("name", [name for name, card in CARDS.items() if card.learns != "nothing"])
def test_every_head_hears_the_vector_that_stands_for_an_absent_modality(name):
    dims = {"image": 6, "emr": 4}
    options = {"finetune": True} if name == "bimodal_autoencoder" else {}
    head = build(name, dims, **options).eval()
    with torch.no_grad():  # some begin where one modality says nothing
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    vector = Absent(6)
    model = FusionModel({modality: {} for modality in dims}, head, {}, dims, 2, {"image": vector})
    has_image = torch.tensor([True, False, True, False, False])
    batch = {
        "image": ModalityBatch(torch.randn(2, 6), has_image),
        "emr": ModalityBatch(torch.randn(5, 4), torch.ones(5, dtype=torch.bool)),
    }
    before = model(batch)
    before[~has_image, 1].sum().backward()
    assert vector.vector.grad is not None
    assert vector.vector.grad.abs().sum() > 0
    with torch.no_grad():
        vector.vector.add_(1.0)
    changed = (model(batch) != before).any(1)
    assert torch.equal(changed, ~has_image), "of rows that lack the image, and of no other"


@pytest.mark.parametrize(
    ("head", "stages", "steps"),
    [
        ("bimodal_autoencoder", STAGES, ["fit head", "train head"]),
        *(
            (name, STAGES[STAGES.index("  - name: fuse") :], ["fit record.scale", "train head"])
            for name in ("decision", "gated", "low_rank", "cross_attention", "film")
        ),
    ],
)
def test_a_recipe_trains_a_head_and_answers_rows_without_a_modality(
    tmp_path, monkeypatch, head, stages, steps
):
    registry = toy_images.make_registry()
    registry.add("fusionkit_heads", fusionkit_heads)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)
    text = toy_images.RECIPE[: toy_images.RECIPE.index("  - name: fuse")] + stages
    text += toy_images.RECIPE[toy_images.RECIPE.index("split:") :]
    manifest = toy_images.make_manifest(tmp_path / "pictures")
    for row in (2, 30):
        manifest = toy_images.with_cell(manifest, "picture", row, None)
    experiment = toy_images.make_experiment(tmp_path, f"head={{use: {head}}}", text=text, manifest=manifest)
    plan = plan_steps(experiment, toy_images.FOLD, 0)
    assert [toy_images.name_of(step) for step in plan.steps][-2:] == steps
    run_steps(experiment, plan)
    assert np.isfinite(predict_logits(experiment, plan.origins, toy_images.FOLD.test)).all()
