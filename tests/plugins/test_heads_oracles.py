"""The numbers of gated, low_rank, cross_attention and film, each computed a second time in another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

import fusionkit_heads
from fusionkit.errors import RecipeError

CARDS = {card.name: card for card in fusionkit_heads.fusionkit_components()}


def build(name, dims, output_dim=3, **options):
    torch.manual_seed(0)
    return CARDS[name].build(CARDS[name].config(**options), dims, output_dim).double().eval()


def draw(dims, n_rows=6, absent=()):
    generator = torch.Generator().manual_seed(1)
    present = {name: torch.ones(n_rows, dtype=torch.bool) for name in dims}
    for name, row in absent:
        present[name][row] = False
    drawn = {n: torch.randn(n_rows, d, generator=generator, dtype=torch.float64) for n, d in dims.items()}
    return {name: values * present[name][:, None] for name, values in drawn.items()}, present


def array(tensor):
    return tensor.detach().numpy()


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


# gated


def test_two_tied_gates_are_the_papers_bimodal_unit():
    """h = z * tanh(W_v v) + (1 - z) * tanh(W_t t), z = sigmoid(W_z [v, t])."""
    dims = {"v": 4, "t": 3}
    head = build("gated", dims, width=5)
    features, present = draw(dims)
    v, t = array(features["v"]), array(features["t"])
    w_z = array(head.gates["of_v"].weight) - array(head.gates["of_t"].weight)
    z = sigmoid(np.concatenate([v, t], 1) @ w_z.T)
    w_v, w_t = array(head.maps["of_v"].weight), array(head.maps["of_t"].weight)
    h = z * np.tanh(v @ w_v.T) + (1 - z) * np.tanh(t @ w_t.T)
    layer = head.classifier[-1]
    expected = h @ array(layer.weight).T + array(layer.bias)
    np.testing.assert_allclose(array(head(features, present)), expected, atol=1e-12)


@pytest.mark.parametrize("gates", ["tied", "untied"])
def test_gates_of_three_modalities_weigh_those_that_are_there(gates):
    dims = {"a": 4, "b": 3, "c": 2}
    head = build("gated", dims, width=5, gates=gates)
    features, present = draw(dims, absent=[("a", 1), ("a", 2), ("c", 2)])
    joined = np.concatenate([array(features[name]) for name in dims], 1)
    rows = []
    for row in range(6):
        here = [name for name in dims if present[name][row]]
        scores = {name: array(head.gates[f"of_{name}"].weight) @ joined[row] for name in here}
        total = sum(np.exp(score) for score in scores.values())
        weights = {n: np.exp(s) / total if gates == "tied" else sigmoid(s) for n, s in scores.items()}
        hidden = {n: np.tanh(array(head.maps[f"of_{n}"].weight) @ array(features[n])[row]) for n in here}
        rows.append(sum(weights[name] * hidden[name] for name in here))
    layer = head.classifier[-1]
    expected = np.stack(rows) @ array(layer.weight).T + array(layer.bias)
    np.testing.assert_allclose(array(head(features, present)), expected, atol=1e-12)


def test_one_modality_by_itself_has_no_tied_gate():
    head = build("gated", {"a": 4}, width=5)
    assert not head.gates
    features, present = draw({"a": 4})
    torch.testing.assert_close(
        head(features, present), head.classifier(head.maps["of_a"](features["a"]).tanh())
    )


# low_rank


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 4))
def test_low_rank_is_a_map_of_the_whole_outer_product(widths, rank, width):
    """The tensor of weights is summed from its rank-one parts, and read by the outer product of all."""
    dims = {name: dim for name, dim in zip("abcd", widths, strict=False)}
    head = build("low_rank", dims, rank=rank, width=width)
    head.bias.data.normal_()
    features, present = draw(dims, 5, absent=[("a", 2)])
    letters = "uvwx"[: len(dims)]
    with_one = [np.concatenate([array(features[name]), np.ones((5, 1))], 1) for name in dims]
    outer = np.einsum(",".join(f"n{i}" for i in letters) + "->n" + letters, *with_one)
    factors = [array(head.factors[f"of_{name}"]) for name in dims]
    tensor = np.einsum(",".join(f"r{i}h" for i in letters) + "->" + letters + "h", *factors)
    expected = np.einsum(f"n{letters},{letters}h->nh", outer, tensor) + array(head.bias)
    np.testing.assert_allclose(array(head.fuse(features, present)), expected, atol=1e-9)


@pytest.mark.parametrize(("n_modalities", "rank"), [(1, 1), (2, 4), (3, 8)])
def test_the_fused_vector_begins_at_variance_one(n_modalities, rank):
    dims = {name: 50 for name in "abc"[:n_modalities]}
    head = build("low_rank", dims, rank=rank, width=400)
    fused = array(head.fuse(*draw(dims, 400)))
    assert 0.8 < fused.var() < 1.25


def test_what_a_wide_modality_says_by_itself_is_not_drowned_by_products():
    """1280 features beside 580, of few rows, and only the first modality tells."""
    dims = {"image": 1280, "emr": 580}
    head = build("low_rank", dims, 2).float()
    features, present = draw(dims, 480)
    outcomes = torch.arange(480) % 2
    features = {name: values.float() for name, values in features.items()}
    features["image"] += 0.25 * (2 * outcomes[:, None] - 1)
    train, test = slice(0, 240), slice(240, 480)
    optimizer = torch.optim.AdamW(head.parameters(), 3e-4, weight_decay=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        logits = head({n: v[train] for n, v in features.items()}, {n: v[train] for n, v in present.items()})
        nn.functional.cross_entropy(logits, outcomes[train]).backward()
        optimizer.step()
    answers = head({n: v[test] for n, v in features.items()}, {n: v[test] for n, v in present.items()})
    assert float((answers.argmax(1) == outcomes[test]).float().mean()) > 0.9


# cross_attention


def torchs_own(head):
    """Returns torch's own encoder layers with the same weights."""
    layers = []
    for block in head.blocks:
        width = head.width
        layer = nn.TransformerEncoderLayer(
            width, block.n_heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        ).double()
        attention = layer.self_attn
        attention.in_proj_weight.data, attention.in_proj_bias.data = (
            block.to_attention.weight.data,
            block.to_attention.bias.data,
        )
        attention.out_proj.load_state_dict(block.from_attention.state_dict())
        layer.norm1.load_state_dict(block.attention_norm.state_dict())
        layer.norm2.load_state_dict(block.layers_norm.state_dict())
        layer.linear1.load_state_dict(block.layers[0].state_dict())
        layer.linear2.load_state_dict(block.layers[2].state_dict())
        layers.append(layer)
    return layers


@pytest.mark.parametrize(("n_tokens", "n_layers", "n_heads"), [(1, 1, 1), (1, 2, 2), (3, 2, 4)])
def test_attention_is_that_of_torchs_own_layers_over_the_tokens_that_are_there(n_tokens, n_layers, n_heads):
    dims = {"a": 4, "b": 3}
    options = {"width": 8, "n_tokens": n_tokens, "n_layers": n_layers, "n_attention_heads": n_heads}
    head = build("cross_attention", dims, **options)
    features, present = draw(dims, absent=[("a", 1), ("a", 2), ("b", 2)])
    for row in range(6):
        tokens = [head.fusion_token[None]]
        for number, name in enumerate(dims):
            if present[name][row]:  # left out, where the head masks
                mapped = head.maps[f"of_{name}"](features[name][row]).reshape(n_tokens, 8)
                tokens.append(mapped + head.embeddings[number])
        values = torch.cat(tokens)[None]
        for layer in torchs_own(head):  # in train mode, without dropout: torch's slow, plain way
            values = layer(values)
        expected = head.output(values[0, 0])
        one = {name: v[row : row + 1] for name, v in features.items()}
        here = {name: v[row : row + 1] for name, v in present.items()}
        torch.testing.assert_close(head(one, here)[0], expected)
        torch.testing.assert_close(head(features, present)[row], expected)


def test_the_width_of_tokens_is_shared_by_the_attentions():
    with pytest.raises(ValidationError, match=r"width is a multiple of n_attention_heads \(10 of 4\)"):
        fusionkit_heads.CrossAttentionConfig(width=10)


# film


@pytest.mark.parametrize("modulated", [None, "a", "b", "c"])
def test_every_layer_of_one_modality_is_scaled_and_shifted_by_the_others(modulated):
    dims = {"a": 4, "b": 3, "c": 2}
    head = build("film", dims, hidden=(6, 5), modulated=modulated)
    features, present = draw(dims, absent=[("a", 1), ("b", 2)])
    name = modulated or "a"
    x = array(features[name])
    others = np.concatenate([array(features[other]) for other in dims if other != name], 1)
    for layer, modulation in zip(head.layers, head.modulations, strict=True):
        x = x @ array(layer.weight).T + array(layer.bias)
        both = others @ array(modulation.weight).T + array(modulation.bias)
        change, shift = both[:, : x.shape[1]], both[:, x.shape[1] :]
        x = np.maximum(x * (1 + change) + shift, 0)
    expected = x @ array(head.output.weight).T + array(head.output.bias)
    np.testing.assert_allclose(array(head(features, present)), expected, atol=1e-12)


def test_a_modality_by_itself_is_modulated_by_nothing_whichever_is_named():
    head = build("film", {"emr": 4}, hidden=(6,), modulated="image")
    features, present = draw({"emr": 4})
    expected = head.output(head.layers[0](features["emr"]).relu())
    torch.testing.assert_close(head(features, present), expected)


def test_a_modality_to_modulate_that_is_not_there_is_said():
    with pytest.raises(RecipeError) as error:
        build("film", {"image": 4, "emr": 3}, modulated="imge")
    assert str(error.value) == (
        "film: modulated is no modality of the recipe (imge). Did you mean 'image'? Known: emr, image."
    )
