"""The shape of a recipe: the first of the loader's passes, and what `fusionkit schema` prints."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)

from fusionkit.recipe.node import Node
from fusionkit.recipe.task_nodes import ClassificationNode, TaskNode
from fusionkit.specs import MAX_SEED

NAME = re.compile(r"[a-z][a-z0-9_]*")
RESERVED = ("head", "fused", "none")
"""What parts, the report and predictions call something else than a modality."""
FUSED = "fused"
"""The model of all modalities, which the others are compared with."""
PRETRAINED = "_pretrained"
"""Ends the name under which the report has a pretrain stage's own classifier."""
MISSING = "_missing_"
"""Is in the name of a model that was tested with cells blanked, such as fused_missing_emr_0.3."""
# Beyond anything real; so that a slip such as 1e9 is a sentence, and not hours of silence or a full memory.
MAX_EPOCHS = 100_000
LARGEST = 1e38  # what float32 holds; whatever learns too fast is stopped by its loss
MAX_REPEATS = 1000
MAX_NAME = 80
MAX_TRAININGS = 10_000
"""Most trainings of one model: folds times repeats times seeds."""
MAX_TESTS = 100_000
"""Most tests of one model with cells blanked: folds times repeats times rates times draws."""


def _check_name(value: str) -> str:
    if isinstance(value, str) and (sentence := wrong_name(value)):
        raise ValueError(sentence)
    return value


def wrong_name(name: str) -> str:
    """Returns what is wrong with a name, or nothing."""
    if len(name) > MAX_NAME:
        return f"a name has at most {MAX_NAME} characters"
    if not NAME.fullmatch(name):
        return "a name is lower-case letters, digits and _, and starts with a letter"
    return ""


def missing_name(model: str, modality: str, rate: float) -> str:
    """Returns under which name a run's report has a model that is tested with cells of a modality blanked."""
    return f"{model}{MISSING}{modality}_{rate:g}"


def is_taken(name: str) -> bool:
    """Says whether a name means something else than a modality."""
    return name in RESERVED or name.endswith(PRETRAINED) or MISSING in name


_NAME_SCHEMA = WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$", "maxLength": MAX_NAME})
Name = Annotated[str, BeforeValidator(_check_name), _NAME_SCHEMA]
StageName = Annotated[str, _NAME_SCHEMA]
"""A name that is checked with the stages, so that all of a recipe's mistakes are found at once."""


class Use(BaseModel):
    """Names a component; the other keys are its options, checked by the component's own config class."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, defer_build=True)
    use: str
    """The component's name, as `fusionkit list` shows it."""

    @property
    def options(self) -> dict[str, Any]:
        """The component's options as written."""
        return dict(self.model_extra or {})


class ModalityNode(Node):
    """One kind of data: which columns, which encoder, and what widens its features."""

    columns: tuple[str, ...] | None = Field(None, min_length=1, max_length=10_000)
    """Columns of the data that it reads; null for all of the kinds that the encoder reads."""
    encoder: Use
    """Turns cells into one feature vector."""
    raiser: Use | None = None
    """Widens the feature vector; null for none."""
    standardize: bool = True
    """Whether features are standardised before the head, on training rows."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of training samples from which train stages take the modality away, anew in every epoch; a
    sample keeps at least one modality."""
    absent: Literal["zero", "learned"] = "zero"
    """What the head gets where a sample lacks the modality; learned: a vector that learns with the head."""


class LoopOptions(Node):
    """Options of the training loop."""

    epochs: int = Field(10, ge=1, le=MAX_EPOCHS)
    """How often every training row is seen."""
    batch_size: int = Field(32, ge=1, le=1_000_000)
    """Rows per optimiser step."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """The optimiser; sgd has momentum .9."""
    learning_rate: float = Field(3e-4, gt=0, le=LARGEST)
    """Largest learning rate of the schedule."""
    weight_decay: float = Field(0.01, ge=0, le=LARGEST)
    """Decoupled for adamw, L2 otherwise."""
    schedule: Literal["constant", "cosine"] = "constant"
    """How the learning rate falls to zero over all steps."""
    warmup_epochs: float = Field(0.0, ge=0, le=MAX_EPOCHS)
    """Over how many epochs the learning rate rises from zero."""
    gradient_clip: float | None = Field(None, gt=0, le=1e9)
    """Largest gradient norm; null for none."""


class SupervisedOptions(LoopOptions):
    """Options of a loop that learns from outcomes."""

    class_weights: Literal["balanced"] | None = None
    """balanced: every class weighs the same in the loss."""
    sampling: Literal["balanced"] | None = None
    """balanced: an epoch has as many rows of every class, some of them several times; instead of
    `class_weights`."""
    subject_weights: Literal["equal"] | None = None
    """equal: every subject weighs the same in the loss, however many samples it has."""
    early_stopping: int | None = Field(None, ge=1, le=MAX_EPOCHS)
    """Stop after this many epochs without a better validation loss, and restore the best weights; needs a
    validation share in the split."""


class FitStage(LoopOptions):
    """Parts learn without outcomes, in data-flow order, on training subjects."""

    name: StageName
    """The stage's name, by which overrides and messages address it."""
    fit: tuple[str, ...] = Field(min_length=1, max_length=1000)
    """Part paths, such as emr.encoder and emr.raiser."""
    rows: Literal["subject", "sample"] = "subject"
    """subject: one row per subject; sample: every row."""
    epochs: int = Field(100, ge=1, le=MAX_EPOCHS)
    """How often every training row is seen (self-supervised parts)."""
    batch_size: int = Field(64, ge=1, le=1_000_000)
    """Rows per optimiser step (self-supervised parts)."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adam"
    """The optimiser (self-supervised parts)."""
    learning_rate: float = Field(1e-3, gt=0, le=LARGEST)
    """Largest learning rate of the schedule (self-supervised parts)."""
    weight_decay: float = Field(0.0, ge=0, le=LARGEST)
    """Decoupled for adamw, L2 otherwise (self-supervised parts)."""


class PretrainStage(SupervisedOptions):
    """An encoder learns through a temporary classifier on its pretraining features."""

    name: StageName
    """The stage's name, by which overrides and messages address it."""
    pretrain: str
    """The encoder's part path, such as image.encoder."""
    classifier: Literal["linear", "vgg"] = "linear"
    """linear: on pooled features; vgg: VGG's own 4096-4096 on unpooled ones."""
    auxiliary: str | None = Field(None, min_length=1)
    """A column of the data: an output of its own also learns its values, such as a picture's magnification,
    and only the outcome's answers. null: no second task."""
    auxiliary_weight: float = Field(1.0, ge=0, le=1e6)
    """What the second task's loss is multiplied by before it is added to the outcome's; needs `auxiliary`."""


class TrainStage(SupervisedOptions):
    """Parts learn together from the outcome; everything that is not named is frozen."""

    name: StageName
    """The stage's name, by which overrides and messages address it."""
    train: tuple[str, ...] = Field(min_length=1, max_length=1000)
    """Part paths, such as head."""


VERBS = ("fit", "pretrain", "train")


def _verb(stage: Any) -> str | None:
    if not isinstance(stage, dict):
        return next((verb for verb in VERBS if hasattr(stage, verb)), None)
    found = [verb for verb in VERBS if verb in stage]
    return found[0] if len(found) == 1 else None


Stage = Annotated[
    Annotated[FitStage, Tag("fit")]
    | Annotated[PretrainStage, Tag("pretrain")]
    | Annotated[TrainStage, Tag("train")],
    Discriminator(
        _verb,
        custom_error_type="stage_verb",
        custom_error_message="a stage has exactly one verb: fit, pretrain or train",
    ),
]


class HoldoutSplit(Node):
    """One random split by subject, stratified by the subject's outcome."""

    scheme: Literal["holdout"]
    """holdout: one random test share."""
    test: float = Field(0.2, gt=0, lt=1)
    """Share of subjects to test on."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the training subjects for early stopping and thresholds; 0 for none."""
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)
    """How many random splits."""
    unit: Literal["subject", "sample"] = "subject"
    """sample: one patient's samples may fall on both sides. That is leakage; see `accept_leakage`."""
    accept_leakage: bool = False
    """Must be true for `unit: sample`; the report is branded."""


class FoldSplit(Node):
    """k folds by subject, stratified by the subject's outcome."""

    scheme: Literal["folds"]
    """folds: every subject is tested once per repeat."""
    folds: int = Field(5, ge=2, le=1000)
    """How many folds."""
    repeats: int = Field(1, ge=1, le=MAX_REPEATS)
    """How often the folds are reshuffled."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Share of the training subjects for early stopping and thresholds; 0 for none."""
    unit: Literal["subject", "sample"] = "subject"
    """sample: one patient's samples may fall on both sides. That is leakage; see `accept_leakage`."""
    accept_leakage: bool = False
    """Must be true for `unit: sample`; the report is branded."""


SETS = ("train", "validation", "test")


class ColumnSplit(Node):
    """The data say which row is for training and which for testing."""

    scheme: Literal["column"]
    """column: a column of the data names the set of each row."""
    column: str
    """The column's name."""
    train: tuple[str, ...] = ("train",)
    """Values of training rows."""
    validation: tuple[str, ...] = ()
    """Values of validation rows."""
    test: tuple[str, ...] = ("test",)
    """Values of test rows."""


Split = Annotated[HoldoutSplit | FoldSplit | ColumnSplit, Field(discriminator="scheme")]


Rate = Annotated[float, Field(ge=0, le=1)]


class EvaluationNode(Node):
    """How logits become a subject's prediction, and what the report says about it."""

    views: Literal["mean_logit", "mean_probability", "vote"] = "mean_logit"
    """How the views of a sample become one; vote: each class has the share of views that call it."""
    samples: Literal["mean_probability", "mean_logit", "max_probability", "vote"] = "mean_probability"
    """How the samples of a subject become one; vote: each class has the share of samples that call it."""
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["validation"] = 0.5
    """Probability from which a subject is called positive; validation: the best balanced accuracy there."""
    interval: float = Field(0.95, gt=0.5, lt=1)
    """Coverage of the intervals."""
    resamples: int = Field(2000, ge=100, le=100_000)
    """How many bootstrap resamples of subjects."""
    modalities_alone: bool = True
    """Whether each modality is also trained and scored alone."""
    subject_outcome: Literal["unanimous", "any_positive"] = "unanimous"
    """Where the data give no outcome of the subject: any_positive calls it positive if any sample is."""
    missing: dict[str, tuple[Rate, ...]] = Field({})
    """Modality -> shares of its cells (of its samples, where it reads files) that are blanked in the test
    rows: the learned models are tested with these, too. The printed report shows it in a small table of
    the main metric, below its comparisons; `report.json` has all metrics."""
    missing_draws: int = Field(1, ge=1, le=100)
    """How often the cells to blank are drawn anew; the figures are means over the draws."""


class TrainingNode(Node):
    """Where and how precisely things are computed."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a CUDA device if there is one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, for file inputs; records stay fp32."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads of each job; null for the cores divided by the jobs that there is work for."""
    jobs: int = Field(1, ge=1, le=64)
    """Processes that compute stages side by side; at most folds times repeats times seeds have work."""
    compile: bool = False
    """Whether torch.compile makes encoders of files quicker; the first pass takes minutes, digits change."""
    workers: int = Field(0, ge=0, le=256)
    """Threads that read images side by side, one more reads ahead; results do not depend on it."""


class Recipe(Node):
    """One experiment."""

    name: Name
    """Names the folder of its runs."""
    description: str = ""
    """One paragraph for people."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Every random choice derives from it."""
    seeds: int = Field(1, ge=1, le=100)
    """How many initialisations the parts that learn by gradient have; a fold averages their predictions."""
    source: Use
    """Where the data come from."""
    task: TaskNode = ClassificationNode()
    """What is predicted."""
    modalities: dict[Name, ModalityNode] = Field(min_length=1, max_length=100)
    """The kinds of data, by a name of your own."""
    head: Use
    """Fuses the modalities' features."""
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=1000)
    """The steps in which named parts learn, in order."""
    split: Split
    """Which subjects train and which test."""
    evaluation: EvaluationNode = EvaluationNode()
    """How predictions are judged."""
    training: TrainingNode = TrainingNode()
    """Where and how precisely things are computed."""

    @property
    def n_trainings(self) -> int:
        """How many times one model is trained: folds, repeats and seeds together."""
        repeats = 1 if isinstance(self.split, ColumnSplit) else self.split.repeats
        folds = self.split.folds if isinstance(self.split, FoldSplit) else 1
        return folds * repeats * self.seeds

    @property
    def n_jobs(self) -> int:
        """How many processes there is work for: at most one for each training of a model."""
        return min(self.training.jobs, self.n_trainings)

    @property
    def dropouts(self) -> dict[str, float]:
        """Modality -> the share of training samples that lose it; nothing is taken from a single modality."""
        shares = {name: node.dropout for name, node in self.modalities.items() if node.dropout}
        return shares if len(self.modalities) > 1 else {}

    @property
    def stood_in(self) -> list[str]:
        """The modalities with a learned vector for what is absent; a single one has none."""
        found = [name for name, node in self.modalities.items() if node.absent == "learned"]
        return found if len(self.modalities) > 1 else []

    @model_validator(mode="after")
    def _check_reserved(self) -> Recipe:
        taken = [name for name in self.modalities if is_taken(name)]
        if taken:
            raise ValueError(
                f"a modality cannot be called {' or '.join(sorted(taken))}: {', '.join(RESERVED)}, "
                f"what ends in {PRETRAINED} and what contains {MISSING} mean something else"
            )
        return self
