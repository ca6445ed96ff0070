from __future__ import annotations

import pytest
import torch
from torch import nn

import fusionkit_heads
from fusionkit.registry import Registry
from fusionkit.specs import HeadSpec

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
