"""Tokens of encoders: packed and unpacked, scaled, stored, and read by heads that take them."""

from __future__ import annotations

import sys

import doors
import numpy as np
import pytest
import torch
import toy_images
import toys
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toy_images import FOLD, RECIPE, make_experiment, make_manifest, with_cell

import fusionkit_heads
import fusionkit_tabular
from fusionkit import ComponentConfig, EncoderSpec, HeadSpec, PluginError, RecipeError, hookimpl
from fusionkit.cli.validate import summarize
from fusionkit.core_parts import Scale
from fusionkit.data.batches import make_units
from fusionkit.prepare import Places as RunPlaces
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.tokens import pack_tokens, unpack_tokens
from fusionkit.training.experiment import Feed
from fusionkit.training.stages import plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

N_TOKENS, DIM = 4, 3
EVERY = tuple(range(36))


class Places(toy_images.ToyConv):
    """Quarters of a picture as tokens: fewer where it is dark, and in no batch more than there must be."""

    def __init__(self, config, columns):
        super().__init__(toy_images.ConvConfig(width=DIM, input=config.input), columns)
        self.n_tokens, self.token_dim = N_TOKENS, DIM

    def tokens(self, images):
        toy_images.COUNTS["tokens"] += len(images)
        maps = self.layers(self.input_spec.normalize(images))
        values = nn.functional.adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
        n_there = 1 + images.float().mean((1, 2, 3)).long() % N_TOKENS
        mask = torch.arange(N_TOKENS) < n_there[:, None]
        most = int(n_there.max())
        return values[:, :most], mask[:, :most]


class Reader(nn.Module):
    """The mean of the tokens that are there, and what else there is, through one layer."""

    def __init__(self, input_dims, output_dim):
        super().__init__()
        self.names = tuple(input_dims)
        self.layer = nn.Linear(sum(input_dims.values()), output_dim)

    def forward(self, features, present):
        parts = []
        for name in self.names:
            values, here = features[name], present[name][..., None]
            if values.ndim == 3:
                values = (values * here).sum(1) / here.sum(1).clamp_min(1)
            parts.append(values)
        return self.layer(torch.cat(parts, 1))


class PlacesConfig(toy_images.ConvConfig):
    """Options of toy_places."""

    silent: bool = False
    """Whether it gives none."""


class ReaderConfig(ComponentConfig):
    """Options of toy_reader."""

    tokens: bool = True
    """Whether it takes them."""


BROKEN: dict[str, object] = {}
"""What the toy's `tokens` and sizes are instead, for a test."""


def build_places(config, columns):
    encoder = Places(config, columns)
    for name, value in BROKEN.items():
        setattr(encoder, name, value)
    return encoder


CARDS = (
    EncoderSpec(
        name="toy_places",
        summary="A convolution with places.",
        source="ours",
        config=PlacesConfig,
        build=build_places,
        reads=("file",),
        gives_tokens=lambda config: not config.silent,
        examples=(PlacesConfig(),),
    ),
    HeadSpec(
        name="toy_reader",
        summary="A mean and a layer.",
        source="ours",
        config=ReaderConfig,
        build=lambda config, input_dims, output_dim: Reader(input_dims, output_dim),
        takes_tokens=lambda config: config.tokens,
    ),
)
TEXT = RECIPE.replace("use: toy_conv", "use: toy_places").replace("use: toy_norm", "use: toy_reader")
LIVE = "stages.fuse.train=[head, image.encoder]"


@hookimpl
def fusionkit_components():
    return CARDS


def registry():
    known = Registry()
    plugins = {"toys": toys, "toy_images": toy_images, "heads": fusionkit_heads}
    for name, plugin in {**plugins, "here": sys.modules[__name__], "tabular": fusionkit_tabular}.items():
        known.add(name, plugin)
    return known


@pytest.fixture(autouse=True)
def _own_plugins(monkeypatch):
    monkeypatch.setattr(toy_images, "make_registry", registry)
    yield
    BROKEN.clear()


def trained(folder, *overrides, manifest=None, text=TEXT):
    """Returns an experiment, and where its parts come from after all stages."""
    experiment = make_experiment(folder, *overrides, text=text, manifest=manifest)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    return experiment, plan


def joined(experiment, plan, rows=EVERY, learning=()):
    """Returns what the head gets for some rows."""
    feed = Feed(experiment, plan.origins, learning)
    units = make_units(np.array(rows), 1)
    feed.ensure(units, training=False)
    model = feed.model({path: experiment.fresh(path, plan.origins[path]) for path in learning}).eval()
    with torch.no_grad():
        return model.join(feed.batch(units, training=False))


# as one vector per row


@given(
    st.integers(0, 4).flatmap(
        lambda n_rows: st.tuples(
            st.just(n_rows), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 99)
        )
    )
)
@settings(max_examples=60, deadline=None)
def test_what_is_packed_comes_out_again_and_nothing_of_what_is_not_there(given_sizes):
    n_rows, n_tokens, dim, more, seed = given_sizes
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n_rows, n_tokens, dim, generator=generator)
    mask = torch.rand(n_rows, n_tokens, generator=generator) < 0.5
    values[~mask] = torch.nan
    packed = pack_tokens(values, mask, n_tokens + more)
    assert packed.shape == (n_rows, (n_tokens + more) * (dim + 1))
    assert bool(torch.isfinite(packed).all())
    found, there = unpack_tokens(packed, n_tokens + more)
    assert torch.equal(there[:, :n_tokens], mask)
    assert not there[:, n_tokens:].any()
    assert torch.equal(found[there], values[mask])
    assert not found[~there].any()


def test_a_scale_counts_each_token_that_is_there_as_a_row():
    generator = torch.Generator().manual_seed(0)
    values = 5 + 2 * torch.randn(20, N_TOKENS, DIM, generator=generator)
    mask = torch.arange(N_TOKENS) <= torch.arange(20)[:, None] % N_TOKENS
    packed = pack_tokens(values, mask, N_TOKENS)
    scale, plain = Scale(DIM, N_TOKENS).fit_parts([packed[:7], packed[7:]]), Scale(DIM).fit(values[mask])
    torch.testing.assert_close(scale.state_dict(), plain.state_dict())
    found, there = unpack_tokens(scale(packed), N_TOKENS)
    assert torch.equal(there, mask)
    torch.testing.assert_close(found[mask], plain(values[mask]))
    assert not found[~mask].any()


# from encoder to head


def test_a_head_that_takes_tokens_gets_them_scaled_in_place_of_the_vector(tmp_path):
    experiment, plan = trained(tmp_path)
    features, present = joined(experiment, plan)
    assert (features["image"].shape, present["image"].shape) == ((36, N_TOKENS, DIM), (36, N_TOKENS))
    assert (features["record"].shape, present["record"].shape) == ((36, 5), (36,))
    there = present["image"]
    assert sorted(set(there.sum(1).tolist())) == [1, 2, 3, 4]
    of_training = features["image"][list(FOLD.train)][there[list(FOLD.train)]]
    torch.testing.assert_close(of_training.mean(0), torch.zeros(DIM), atol=1e-5, rtol=0)
    torch.testing.assert_close(of_training.std(0, correction=0), torch.ones(DIM), atol=1e-5, rtol=0)
    assert not features["image"][~there].any()


def test_stored_tokens_are_those_that_the_encoder_gives_live(tmp_path):
    experiment, plan = trained(tmp_path)
    stored, live = joined(experiment, plan), joined(experiment, plan, learning=("image.encoder",))
    torch.testing.assert_close(stored, live)
    toy_images.COUNTS.clear()
    predict_logits(experiment, plan.origins, FOLD.test)
    assert toy_images.COUNTS["tokens"] == 0, "all of them are stored"


def test_an_encoder_learns_through_its_tokens(tmp_path):
    experiment, plan = trained(tmp_path, LIVE)
    before = experiment.module("image.encoder", plan.steps[-1].used["image.encoder"])
    after = experiment.module("image.encoder", plan.origins["image.encoder"])
    assert not torch.equal(before.layers[0].weight, after.layers[0].weight)
    assert np.isfinite(predict_logits(experiment, plan.origins, FOLD.test)).all()


@pytest.mark.parametrize(
    "override",
    [
        "head.tokens=false",
        "modalities.image.encoder.silent=true",
        "modalities.image.raiser={use: toy_center}",
    ],
)
def test_the_vector_stays_where_one_of_the_three_says_no(tmp_path, override):
    # the reader may have no tokens only where it does not ask; a second image keeps the recipe whole
    text = TEXT if "head" in override else with_second_image()
    if "raiser" in override:
        text = text.replace(
            "  - name: fuse\n", "  - name: raise_image\n    fit: [image.raiser]\n  - name: fuse\n"
        )
    experiment, plan = trained(tmp_path, override, text=text)
    features, present = joined(experiment, plan)
    assert (features["image"].ndim, present["image"].ndim) == (2, 1)
    assert ("other" not in features) or features["other"].ndim == 3


def with_second_image():
    return TEXT.replace(
        "  record:\n", "  other:\n    encoder: {use: toy_places, input: {size: 8}}\n  record:\n"
    ).replace("train: [head]", "train: [head, other.encoder]")


def test_rows_without_the_modality_have_no_token_and_nothing_of_it_comes_through(tmp_path):
    manifest = make_manifest_without(tmp_path, [3, 30])
    experiment, plan = trained(tmp_path, manifest=manifest)
    features, present = joined(experiment, plan)
    assert not present["image"][[3, 30]].any()
    assert not features["image"][[3, 30]].any()
    assert present["image"].any(1).sum() == 34


def make_manifest_without(folder, rows):
    toy_images.make_pictures(folder / "pictures")
    manifest = make_manifest(folder / "pictures")
    for row in rows:
        manifest = with_cell(manifest, "picture", row, None)
    return manifest


def test_a_learned_vector_stands_in_as_one_token(tmp_path):
    manifest = make_manifest_without(tmp_path, [3, 30])
    experiment, plan = trained(tmp_path, "modalities.image.absent=learned", manifest=manifest)
    features, present = joined(experiment, plan)
    assert present["image"][[3, 30]].tolist() == [[True, False, False, False]] * 2
    vector = experiment.module("image.absent", plan.origins["image.absent"]).vector
    assert vector.abs().sum() > 0, "it has learned"
    torch.testing.assert_close(features["image"][3, 0], vector.detach())
    torch.testing.assert_close(features["image"][30, 0], vector.detach())


def test_attention_over_tokens_answers_for_a_row_alone_as_among_others(tmp_path):
    options = "{use: cross_attention, encoder_tokens: true, width: 8, n_attention_heads: 2}"
    text = TEXT.replace("{use: toy_reader}", options)
    experiment, plan = trained(tmp_path, text=text, manifest=make_manifest_without(tmp_path, [30]))
    together = predict_logits(experiment, plan.origins, FOLD.test)
    alone = np.concatenate([predict_logits(experiment, plan.origins, [row]) for row in FOLD.test])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)
    assert np.isfinite(together).all()


# addresses


def test_heads_share_a_pretraining_and_no_scale_with_heads_that_read_vectors(tmp_path):
    def addresses(*overrides):
        return toy_images.addresses(make_experiment(tmp_path, *overrides, text=TEXT))

    tokens, vectors = addresses(), addresses("head.tokens=false")
    same = {name for name in tokens if tokens[name] == vectors[name]}
    assert {"pretrain image.encoder", "fit record.raiser"} <= same
    assert {"train head", "fit image.scale"} <= set(tokens) - same
    assert "fit record.scale" in same, "a record gives a vector to both"


def test_validate_says_whose_tokens_are_read():
    lines = [line.split(maxsplit=1)[1] for line in summarize(toy_images.load(text=with_second_image()))[2:5]]
    assert lines == [
        "1 column -> toy_places -> its tokens -> head",
        "1 column -> toy_places -> its tokens -> head",
        "2 columns -> toy_mean -> toy_denoise -> head",
    ]
    (vector,) = summarize(toy_images.load("head.tokens=false", text=TEXT))[2:3]
    assert vector.split(maxsplit=1)[1] == "1 column -> toy_places -> head"


# bad input


def test_a_recipe_whose_head_would_read_tokens_and_gets_none_is_refused():
    text = TEXT.replace("toy_places, input: {size: 8}", "toy_conv, input: {size: 8}")
    with pytest.raises(RecipeError) as caught:
        load_text(text, registry(), name="r.yaml")
    assert list(caught.value.problems) == [
        "r.yaml:10: head: toy_reader would read tokens, and no modality gives any (image: toy_conv, record: "
        "toy_mean with a raiser). Look at its options, or use an encoder that gives them, without a raiser: "
        "toy_places."
    ]


BAD = {
    "no pair": (
        {"tokens": lambda images: torch.zeros(len(images), 2, DIM)},
        "`tokens` gives (32, 2, 3) float32, and (32, at most 4, 3) floats with a bool mask are due.",
    ),
    "another width": (
        {"tokens": lambda images: (torch.zeros(len(images), 2, 5), torch.ones(len(images), 2) > 0)},
        "`tokens` gives ((32, 2, 5) float32, (32, 2) bool), and (32, at most 4, 3) floats with a bool mask "
        "are due.",
    ),
    "no bool": (
        {"tokens": lambda images: (torch.zeros(len(images), 2, DIM), torch.ones(len(images), 2))},
        "`tokens` gives ((32, 2, 3) float32, (32, 2) float32), and (32, at most 4, 3) floats with a bool "
        "mask are due.",
    ),
    "a row without": (
        {"tokens": lambda images: (torch.zeros(len(images), 2, DIM), torch.zeros(len(images), 2) > 0)},
        "`tokens` gives a row without any token. Mend the plugin; give at least one.",
    ),
    "no size": (
        {"n_tokens": None},
        "its card says that it gives tokens, and it has no `tokens`, or its `n_tokens` or `token_dim` is no "
        "number from 1 on.",
    ),
    "it fails": ({"tokens": lambda images: 1 // 0}, "`tokens` fails (ZeroDivisionError: "),
}


@pytest.mark.parametrize("name", BAD)
def test_what_are_no_tokens_is_the_plugins_fault(tmp_path, name):
    changes, sentence = BAD[name]
    BROKEN.update(changes)
    with pytest.raises(PluginError) as caught:
        trained(tmp_path)
    assert caught.value.problems[0].startswith(f"image.encoder: {sentence}")


def test_a_token_that_comes_and_goes_is_noticed_beside_a_large_value(tmp_path):
    def tokens(images):
        values = images.float().flatten(1)[:, : 2 * DIM].reshape(-1, 2, DIM)
        values = values + 1e6 * (torch.arange(DIM) == 0)
        mask = torch.ones(len(images), 2, dtype=torch.bool)
        mask[:, 1] = torch.arange(len(images)) % 3 == 0
        return values, mask

    BROKEN.update(tokens=tokens)
    with pytest.raises(PluginError, match="gives other values for the same rows in another batch"):
        trained(tmp_path)


def test_a_neighbour_in_a_token_is_noticed(tmp_path):
    def tokens(images):
        values = images.float().flatten(1)[:, : 2 * DIM].reshape(-1, 2, DIM)
        return values - values.mean(0), torch.ones(len(images), 2, dtype=torch.bool)

    BROKEN.update(tokens=tokens)
    with pytest.raises(PluginError, match="gives other values for the same rows in another batch"):
        trained(tmp_path)


def test_cross_attention_makes_tokens_or_reads_them():
    config = fusionkit_heads.CROSS_ATTENTION.config
    with pytest.raises(ValueError, match="`n_tokens` are made where `encoder_tokens` is false"):
        config(encoder_tokens=True, n_tokens=2)
    assert not fusionkit_heads.CROSS_ATTENTION.takes_tokens(config())
    assert fusionkit_heads.CROSS_ATTENTION.takes_tokens(config(encoder_tokens=True))


# a truth that no single vector holds


KINDS, N_SAMPLES = 3, 600


def write_bags(folder, rng):
    """Writes bags of one tile of each kind, each light or dark; the record names the kind that decides.

    The mean over a bag of (which kind, how light) keeps how many are light, and not which.
    """
    rows = []
    for row in range(N_SAMPLES):
        signs, asked = rng.choice([-1.0, 1.0], KINDS), int(rng.integers(KINDS))
        tiles = np.hstack([3 * np.eye(KINDS), 3 * signs[:, None]])[rng.permutation(KINDS)]
        path = folder / "study" / f"{row}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, (tiles + rng.normal(0, 0.2, tiles.shape)).astype(np.float32))
        is_ill = signs[asked] > 0
        cells = {"tiles": path.name, "asked": "abc"[asked], "diagnosis": "ill" if is_ill else "healthy"}
        rows.append({"patient": f"p{row}", **cells})
    doors.write_table(folder / "study" / "rows.csv", rows)


@pytest.mark.slow
def test_a_head_that_reads_tiles_learns_what_their_mean_does_not_hold(tmp_path):
    write_bags(tmp_path, np.random.default_rng(0))
    bag = {"use": "vector_bag", "width": KINDS + 1, "pooling": "mean", "max_tiles": KINDS}
    tree = yaml.safe_load(doors.recipe(bag, {"tiles": {"kind": "file"}}))
    del tree["source"]["columns"]["age"]
    tree["source"]["columns"]["asked"] = {"kind": "category", "values": ["a", "b", "c"]}
    tree["modalities"]["record"]["columns"] = ["asked"]
    tree["split"] = {"scheme": "holdout", "test": 0.5}
    tree["stages"][-1] |= {"epochs": 60, "batch_size": 32, "learning_rate": 0.003}
    found = {}
    for tokens in (False, True):
        tree["head"] = {"use": "cross_attention", "encoder_tokens": tokens, "width": 32, "n_layers": 2}
        loaded = load_text(yaml.safe_dump(tree), Registry.discover(), data_root=tmp_path)
        places = RunPlaces(tmp_path, tmp_path / "store", tmp_path / "runs")
        found[tokens] = doors.auc(run(loaded, Registry.discover(), places, lambda name, data: None), "fused")
    # of three signs two are left to chance where the one that counts is known only among them
    assert found[False] < 0.85
    assert found[True] > 0.97
