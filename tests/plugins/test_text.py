from __future__ import annotations

import builtins
import json
import subprocess
import sys
from dataclasses import replace

import doors
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer
from strategies import bounded

import fusionkit_text
from fusionkit import Cut
from fusionkit.errors import DataError, PluginError, RecipeError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec
from fusionkit.testing.kit import pair
from fusionkit_text.words import count_hashed, words_of

WORDS, TRANSFORMER = fusionkit_text.fusionkit_components()
COLUMNS = {"note": ColumnSpec(kind="text")}
NOTES = [
    "Painful lump, 2.5 cm; no fever.",
    "No lump. No pain.",
    "Fever for three days, painful",
    "Lump lump lump",
]


def build(**options):
    return WORDS.build(WORDS.config(**options), COLUMNS).eval()


def batch_of(encoder, texts):
    spec = encoder.input_spec
    return spec.collate([spec.load({"note": text}, [Cut("whole")])[0] for text in texts])


def test_the_cards_are_found_through_the_entry_point():
    registry = Registry.discover()
    assert registry.card(EncoderSpec, "hashed_words") is WORDS
    assert registry.card(EncoderSpec, "transformers_text") is TRANSFORMER


# words


def test_words_are_folded_and_numbers_keep_their_decimals():
    assert words_of("Tumour: 2.5cm, STRASSE straße ﬁne") == [
        *("tumour", "2.5", "cm"),
        *("strasse", "strasse", "fine"),
    ]


def test_a_hash_is_the_same_in_every_process():
    script = "from fusionkit_text.words import count_hashed as c; print(c(['lump', 'pain'], 16, 2).tolist())"
    found = {
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert found == {f"{count_hashed(['lump', 'pain'], 16, 2).tolist()}\n"}
    expected = np.zeros(16)
    expected[[0, 10, 14]] = 1  # by hand from what `b2sum -l 64` says of lump, pain and "lump pain"
    np.testing.assert_array_equal(count_hashed(["lump", "pain"], 16, 2), expected)


def test_pairs_are_counted_where_asked_for():
    assert np.abs(count_hashed(["a", "b", "c"], 4096, 1)).sum() == 3
    assert np.abs(count_hashed(["a", "b", "c"], 4096, 2)).sum() == 5


def test_signs_make_two_texts_product_right_on_average():
    """Hashing's promise (Weinberger et al. 2009): what falls together cancels out instead of adding up."""
    ours, others = [f"a{i}" for i in range(400)], [f"b{i}" for i in range(400)]
    product = float(count_hashed(ours, 64, 1) @ count_hashed(others, 64, 1))
    assert abs(product) < 400 * 400 / 64 / 4


def test_idf_and_length_are_scikit_learns():
    encoder = build(width=64)
    counts = batch_of(encoder, NOTES)
    assert encoder.fit(counts, None, seed=0) is encoder
    theirs = TfidfTransformer(smooth_idf=True).fit(counts.numpy()).transform(counts.numpy()).toarray()
    np.testing.assert_allclose(encoder(counts).numpy(), theirs, rtol=1e-5, atol=1e-7)


def test_what_is_learned_survives_its_state_and_an_earlier_fit_is_forgotten():
    encoder, fresh = build(width=64), build(width=64)
    counts = batch_of(encoder, NOTES)
    encoder.fit(counts[:2], seed=0).fit(counts, seed=0)
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(fresh(counts), build(width=64).fit(counts, seed=0).eval()(counts))


def test_without_idf_nothing_is_learned_and_no_stage_is_needed():
    encoder = build(width=64, idf=False)
    features = encoder(batch_of(encoder, NOTES))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    assert WORDS.is_pretrained(WORDS.config(idf=False))
    assert not WORDS.is_pretrained(WORDS.config())
    with pytest.raises(PluginError, match="hashed_words: not fitted yet"):
        build()(batch_of(build(), NOTES))


@given(st.text(max_size=40))
@bounded(100)
def test_every_text_has_finite_features_or_is_absent(text):
    encoder = build(width=32, idf=False)
    if encoder.input_spec.content_key({"note": text}) is None:
        assert words_of(text) == [] or not any(map(str.isalnum, text))
    features = encoder(batch_of(encoder, [text]))
    assert features.isfinite().all()
    assert features.norm() <= 1 + 1e-5


def test_texts_that_say_nothing_are_absent_and_equal_ones_share_a_key():
    key = build().input_spec.content_key
    assert [key({"note": text}) for text in (None, "", " - ", "…")] == [None] * 4
    assert key({"note": "ﬁne"}) == key({"note": "fine"}) != key({"note": "Fine"})


def test_one_column_is_read():
    with pytest.raises(RecipeError) as error:
        WORDS.build(WORDS.config(), COLUMNS | {"other": ColumnSpec(kind="text")})
    assert str(error.value) == (
        "columns: a text is read from one column (given: note, other). Name one of kind text."
    )


# beside a record

TEXT = {"note": {"kind": "text"}}
SAID = ["no pain, small smooth lump", "painful, hard lump, {} cm, growing"]


def note_of(row, is_ill):
    return {"note": SAID[is_ill].format(1 + row / 10)}


def test_notes_learn_beside_a_record_and_answer_in_another_process(tmp_path):
    rows = doors.rows_of(note_of)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    learns = [{"name": "words", "fit": ["extra.encoder"]}]
    text = doors.recipe({"use": "hashed_words", "width": 64}, TEXT, learns=learns)
    result = doors.run_beside_a_record(tmp_path, text)
    assert doors.auc(result) > 0.95
    doors.predict_in_another_process(tmp_path, result, rows)


# transformers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT from scratch and its tokenizer, as `save_pretrained` leaves them."""
    transformers = pytest.importorskip("transformers", reason="the extra `text` is not installed")
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("bert")
    known = sorted({word for text in [*NOTES, *SAID] for word in words_of(text)})
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *known])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def build_transformer(folder, **options):
    config = TRANSFORMER.config(model=str(folder / "model.safetensors"), **{"length": 16, **options})
    return TRANSFORMER.build(config, COLUMNS).eval()


def test_pooling_leaves_the_padding_out(folder):
    for pooling in ("mean", "cls"):
        encoder = build_transformer(folder, pooling=pooling)
        assert encoder.output_dim == 16
        alone = torch.cat([encoder(batch_of(encoder, [text])) for text in NOTES])
        torch.testing.assert_close(encoder(batch_of(encoder, NOTES)), alone, rtol=1e-4, atol=1e-5)


def test_the_mean_is_of_the_models_own_hidden_states(folder):
    import transformers

    theirs = transformers.BertModel.from_pretrained(folder).eval()
    encoder = build_transformer(folder)
    ids = batch_of(encoder, NOTES[:1])["ids"]
    assert ids[0, 0] == 2
    with torch.inference_mode():
        hidden = theirs(input_ids=ids).last_hidden_state
        torch.testing.assert_close(encoder(batch_of(encoder, NOTES[:1])), hidden.mean(1))
        first = build_transformer(folder, pooling="cls")
        torch.testing.assert_close(first(batch_of(first, NOTES[:1])), hidden[:, 0])


def test_with_a_models_folder_the_card_keeps_the_whole_contract(folder):
    options = [{"pooling": "mean"}, {"pooling": "cls"}]
    model = str(folder / "model.safetensors")
    examples = tuple(TRANSFORMER.config(model=model, length=16, **each) for each in options)
    card = replace(TRANSFORMER, examples=examples)
    # an example that holds a path is no example for everybody
    found = {check.name: check.look(case) for case, check in pair(card) if check.name != "check_card"}
    assert {name: said for name, said in found.items() if said[0] == "fail"} == {}
    assert found["check_tokens"][0] == "pass"


def test_long_texts_are_cut_and_every_parameter_learns(folder):
    encoder = build_transformer(folder, length=5)
    batch = batch_of(encoder, ["lump " * 50])
    assert batch["ids"].shape == (1, 5)
    encoder.train()(batch).sum().backward()
    assert [name for name, one in encoder.named_parameters() if one.grad is None] == []


def copy_of(folder, target, *, without="", **config):
    target.mkdir()
    for path in folder.iterdir():
        if path.name != without:
            (target / path.name).write_bytes(path.read_bytes())
    if config:
        told = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(told | config))
    return target


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_one_sentence(folder, tmp_path, name):
    target = copy_of(folder, tmp_path / "m", without=name)
    with pytest.raises(DataError) as error:
        build_transformer(target)
    assert str(error.value) == (
        f"{target / 'model.safetensors'}: {target} lacks {name}. Save model and tokenizer into one folder "
        "with `save_pretrained`; nothing is fetched."
    )


def test_other_models_are_one_sentence(folder, tmp_path):
    with pytest.raises(DataError, match=r"pytorch_model.bin: not a .safetensors file. Name the model"):
        TRANSFORMER.build(TRANSFORMER.config(model="pytorch_model.bin"), COLUMNS)
    with pytest.raises(RecipeError, match=r"length: the model reads at most 32 tokens \(given: 64\)"):
        build_transformer(folder, length=64)
    with pytest.raises(DataError, match="an encoder with a decoder"):
        build_transformer(copy_of(folder, tmp_path / "decoder", is_encoder_decoder=True))
    with pytest.raises(DataError, match="the model cannot be loaded"):
        build_transformer(copy_of(folder, tmp_path / "strange", model_type="nonsense"))
    with pytest.raises(DataError, match="tensors are absent, such as"):
        build_transformer(copy_of(folder, tmp_path / "deeper", num_hidden_layers=3))
    broken = copy_of(folder, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json beside it cannot be read"):
        build_transformer(broken)
    (broken / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x80\x04nothing")
    with pytest.raises(DataError, match="the model cannot be loaded"):
        build_transformer(broken)


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    told = {"auto_map": {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config"}, "model_type": "evil"}
    target = copy_of(folder, tmp_path / "evil", **told)
    (target / "evil.py").write_text("raise SystemExit('run')")
    with pytest.raises(DataError, match="the model cannot be loaded"):
        build_transformer(target)


def test_tokenizer_and_config_are_in_the_address(folder, tmp_path):
    other = build_transformer(copy_of(folder, tmp_path / "m", hidden_act="relu")).input_spec.identity()
    ours = build_transformer(folder).input_spec.identity()
    assert ours["files"]["tokenizer.json"] == other["files"]["tokenizer.json"]
    assert ours["files"]["config.json"] != other["files"]["config.json"]


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    really = builtins.__import__

    def lacking(name, *arguments, **options):
        if name.split(".")[0] == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'")
        return really(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(RecipeError) as error:
        TRANSFORMER.build(TRANSFORMER.config(model="m/model.safetensors"), COLUMNS)
    assert str(error.value) == (
        "use: transformers_text needs transformers, which is not installed (No module named "
        "'transformers'). Say: pip install 'fusionkit[text]'."
    )


@pytest.mark.slow
def test_a_transformer_learns_beside_a_record_and_answers_in_another_process(folder, tmp_path):
    rows = doors.rows_of(note_of)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    copy_of(folder, tmp_path / "bert")
    encoder = {"use": "transformers_text", "model": "bert/model.safetensors", "length": 16}
    result = doors.run_beside_a_record(tmp_path, doors.recipe(encoder, TEXT))
    assert doors.auc(result) > 0.95
    doors.predict_in_another_process(tmp_path, result, rows)
