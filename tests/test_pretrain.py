from __future__ import annotations

import torch
from toy_images import FOLD, make_experiment

from fusionkit.training import pretrain
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.stages import Plan, plan_steps, run_steps


def test_a_temporary_classifier_starts_anew_in_every_initialisation(tmp_path, monkeypatch):
    started: list[torch.Tensor] = []
    real = pretrain.build_classifier

    def build(*arguments):
        classifier = real(*arguments)
        started.append(classifier.layers[0].weight.clone())
        return classifier

    monkeypatch.setattr(pretrain, "build_classifier", build)
    experiment = make_experiment(tmp_path, "seeds=2")
    for member in (0, 1):
        run_steps(experiment, Plan(plan_steps(experiment, FOLD, member).steps[2:3], {}))
    first, second = started
    assert not torch.equal(first, second)
    stage = experiment.factory.loaded.recipe.stages[2]
    encoder = experiment.module("image.encoder", experiment.initial("image.encoder", 0))
    # the first has the recipe's own seed
    assert torch.equal(real(experiment, stage, encoder, 0).layers[0].weight, first)


def test_no_rows_have_no_logits(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    stage = experiment.factory.loaded.recipe.stages[2]
    assert predict_pretrained(experiment, stage, plan.origins["image.encoder"], []).shape == (0, 1, 2)
