"""What holds of every head: any modalities, any batch, nothing of what is absent, all learned state kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusionkit_heads
from fusionkit.registry import Registry
from fusionkit.specs import HeadSpec

CARDS = {card.name: card for card in fusionkit_heads.fusionkit_components()}
OPTIONS = {
    f"{name}-{number}": (name, options)
    for name, card in CARDS.items()
    if name != "bimodal_autoencoder"  # it learns in two stages, and has tests of its own
    for number, options in enumerate(card.examples)
}
# concat_mlp trusts the model to bring zeros for what is absent
MASKED = [key for key in OPTIONS if not key.startswith("concat_mlp")]


def build(key, dims, output_dim=2, seed=0):
    name, options = OPTIONS[key]
    torch.manual_seed(seed)
    return CARDS[name].build(options, dims, output_dim)


def draw(dims, n_rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    features = {name: torch.randn(n_rows, dim, generator=generator) for name, dim in dims.items()}
    return features, {name: torch.ones(n_rows, dtype=torch.bool) for name in dims}


def test_every_head_is_found_through_the_entry_point():
    registry = Registry.discover()
    assert all(registry.card(HeadSpec, name) is card for name, card in CARDS.items())


@pytest.mark.parametrize("key", OPTIONS)
@pytest.mark.parametrize("dims", [{"a": 3}, {"a": 3, "b": 1}, {"keys": 2, "b": 3, "c": 1, "d": 4}])
@pytest.mark.parametrize("output_dim", [1, 2, 5])
def test_any_number_of_modalities_any_output_and_batches_of_none_and_one(key, dims, output_dim):
    head = build(key, dims, output_dim).eval()
    for n_rows in (0, 1, 4):
        out = head(*draw(dims, n_rows))
        assert out.shape == (n_rows, output_dim)
        assert out.dtype == torch.float32
        assert bool(out.isfinite().all())
    head.train()
    for n_rows in (0, 1):
        head(*draw(dims, n_rows)).sum().backward()


@settings(deadline=None, max_examples=40)
@given(st.data())
@pytest.mark.parametrize("key", MASKED)
def test_what_an_absent_modality_holds_never_reaches_the_output(key, data):
    names = data.draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    dims = {name: data.draw(st.integers(1, 4)) for name in names}
    features, present = draw(dims, 3, data.draw(st.integers(0, 99)))
    for there in present.values():
        there.copy_(torch.tensor(data.draw(st.lists(st.booleans(), min_size=3, max_size=3))))
    other = {
        name: torch.where(present[name][:, None], values, data.draw(st.sampled_from([torch.nan, 1e30, 7.0])))
        for name, values in features.items()
    }
    head = build(key, dims).eval()
    out = head(features, present)
    assert bool(out.isfinite().all())
    assert torch.equal(head(other, present), out)


@pytest.mark.parametrize("key", MASKED)
def test_a_row_with_nothing_has_a_finite_answer_with_finite_gradients(key):
    dims = {"a": 3, "b": 2}
    head = build(key, dims)
    features, present = draw(dims, 2)
    nowhere = {name: torch.zeros(2, dtype=torch.bool) for name in present}
    out = head.eval()(features, nowhere)
    assert bool(out.isfinite().all())
    torch.testing.assert_close(out[0], out[1])  # kernels round by the place in the batch
    out.sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in head.parameters())


@pytest.mark.parametrize("key", OPTIONS)
@pytest.mark.parametrize("dims", [{"a": 3}, {"a": 3, "b": 2}, {"a": 3, "b": 2, "c": 4}])
def test_gradients_reach_every_parameter_and_every_feature(key, dims):
    head = build(key, dims, 3).eval()
    features, present = draw(dims, 32)
    for values in features.values():
        values.requires_grad_(True)
    weights = torch.randn(32, 3, generator=torch.Generator().manual_seed(5))
    (head(features, present) * weights).sum().backward()
    # one weight of one modality is 1, whatever is learned
    idle = {"log_weights"} if len(dims) == 1 else set()
    bare = [n for n, p in head.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert set(bare) - idle == set()
    assert all(bool((values.grad != 0).any(0).all()) for values in features.values())


@pytest.mark.parametrize("key", OPTIONS)
def test_all_that_is_learned_is_in_the_state(key):
    dims = {"a": 3, "b": 2}
    head, again = build(key, dims).eval(), build(key, dims, seed=7).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    features, present = draw(dims, 5)
    present["a"][2] = False
    assert not torch.equal(again(features, present), head(features, present))
    again.load_state_dict(head.state_dict())
    assert torch.equal(again(features, present), head(features, present))


@pytest.mark.parametrize("key", OPTIONS)
def test_a_seed_gives_one_initial_state_and_a_row_is_its_own_affair(key):
    dims = {"a": 3, "b": 2}
    head, same = build(key, dims).eval(), build(key, dims).eval()
    assert all(torch.equal(p, q) for p, q in zip(head.parameters(), same.parameters(), strict=True))
    features, present = draw(dims, 6)
    present["b"][:3] = False
    state = torch.get_rng_state()
    out = head(features, present)
    assert torch.equal(torch.get_rng_state(), state)
    for row in range(6):
        one = {name: values[row : row + 1] for name, values in features.items()}
        alone = head(one, {name: there[row : row + 1] for name, there in present.items()})
        torch.testing.assert_close(alone, out[row : row + 1])


@pytest.mark.parametrize("key", OPTIONS)
def test_features_go_by_their_names_and_not_by_their_order(key):
    dims = {"b": 2, "a": 2}
    head = build(key, dims).eval()
    features, present = draw(dims, 4)
    turned = head(dict(reversed(features.items())), dict(reversed(present.items())))
    assert torch.equal(turned, head(features, present))


LEARNERS = {
    "gated": {"width": 16, "hidden": (16,), "dropout": 0.0},
    "low_rank": {"width": 8, "dropout": 0.0},
    "cross_attention": {"width": 16, "n_layers": 1, "dropout": 0.0},
    "film": {"hidden": (16,), "dropout": 0.0},
    "concat_mlp": {"hidden": (16,), "dropout": 0.0},
}


def learn_exclusive_or(name, options):
    """Returns the share of 200 new rows whose outcome, whether one and only one sign is up, is told right."""
    torch.manual_seed(0)
    features, present = draw({"a": 3, "b": 2}, 400, seed=3)
    outcomes = ((features["a"][:, 0] > 0) ^ (features["b"][:, 0] > 0)).long()
    head = CARDS[name].build(CARDS[name].config(**options), {"a": 3, "b": 2}, 2)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    train, test = slice(0, 200), slice(200, 400)
    for _ in range(300):
        optimizer.zero_grad()
        logits = head({n: v[train] for n, v in features.items()}, {n: v[train] for n, v in present.items()})
        torch.nn.functional.cross_entropy(logits, outcomes[train]).backward()
        optimizer.step()
    with torch.inference_mode():
        answers = head({n: v[test] for n, v in features.items()}, {n: v[test] for n, v in present.items()})
    return float((answers.argmax(1) == outcomes[test]).float().mean())


@pytest.mark.parametrize("name", LEARNERS)
def test_what_only_both_modalities_together_tell_is_learned(name):
    assert learn_exclusive_or(name, LEARNERS[name]) > 0.85


@pytest.mark.parametrize("rule", ["average", "weighted", "stacked"])
def test_decisions_cannot_tell_what_only_both_modalities_together_tell(rule):
    assert learn_exclusive_or("decision", {"hidden": (16,), "dropout": 0.0, "rule": rule}) < 0.65
