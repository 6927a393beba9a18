"""Every setting of a run: its meaning, unit and bounds.

A run is one small YAML file (`pipelines/settings/*.yaml`) that `RunSettings` validates. Settings
are frozen, an unknown key is an error that names the nearest right one, and nothing here reads the
environment: where stores and services live is in `linnet.stores.connections`.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from linnet.errors import SettingsError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0.0)]


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, every default validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    called: ClassVar[str] = "settings"

    @classmethod
    def load(cls, path: Path | None = None, overrides: tuple[str, ...] = ()) -> Self:
        """Read a YAML file (none: the defaults) and apply overrides like `train.size_px=128`.

        Raises:
            SettingsError: the file is absent or not YAML, or a key or value is wrong.
        """
        values = {} if path is None else read_yaml(path, list(cls.model_fields))
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, where=cls.called if path is None else str(path))

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "settings") -> Self:
        """Return validated settings.

        Raises:
            SettingsError: every wrong key and value, each with what was expected and, for a
                misspelt key, the nearest right one.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SettingsError(_explain(cls, error, where)) from error


class CsvSettings(Settings):
    """How to read labels from a CSV that lies beside a folder of pictures."""

    path: str = Field(description="CSV file, relative to the source's root or absolute")
    file_column: str = Field("file", description="column with the picture's path below `root`")
    file_suffix: str = Field(
        "", description="what the file column leaves out, such as .jpg after bare ids"
    )
    label_column: str = Field("label", description="column with the class name")
    vote_columns: tuple[str, ...] = Field(
        (),
        description="instead of the label column: one column per annotator, majority wins; a "
        "pattern such as `vote *` stands for all that it matches",
    )
    split_column: str | None = Field(None, description="column with train, val or test")
    group_column: str | None = Field(None, description="pictures of one group stay in one split")
    root: str = Field("", description="folder of the pictures, relative to the source's root")


class PlaceSettings(Settings):
    """One place with labelled pictures, and how its labels are read."""

    uri: str = Field(
        description="digits | folder, .zip or .tar[.gz|.bz2|.xz] | s3://bucket/prefix-or-archive | "
        "torchvision://NAME",
    )
    csv: CsvSettings | None = Field(None, description="labels from a CSV instead of class folders")
    splits: dict[str, Split | Literal["ignore"]] = Field(
        default_factory=dict,
        description="more names of split folders or split values, such as {holdout: val}",
    )
    classes: tuple[str, ...] = Field(
        (), description="only these classes, such as [cat, dog]; empty: all that the source has"
    )


class SourceSettings(PlaceSettings):
    """Where the labelled pictures come from."""

    uri: str = Field("digits", description=PlaceSettings.model_fields["uri"].description)
    more: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], PlaceSettings] = Field(
        default_factory=dict,
        description="further sources by name, such as {annotated: {uri: s3://…}}: their pictures "
        "join the dataset and leave the others in their splits",
    )

    @property
    def places(self) -> tuple[PlaceSettings, ...]:
        """Return the source's own place and the further ones."""
        return (self, *self.more.values())

    @property
    def uris(self) -> str:
        """Return the addresses of all places, for people."""
        return " + ".join(place.uri for place in self.places)


class IngestSettings(Settings):
    """How pictures are checked, split and stored."""

    min_side_px: Count = Field(8, description="smaller pictures are quarantined, pixels")
    max_pixels: Count = Field(50_000_000, description="larger pictures are quarantined, w × h")
    val_fraction: Fraction = Field(0.15, description="share of pictures for validation")
    test_fraction: Fraction = Field(0.15, description="share of pictures for test")
    seed: int = Field(42, ge=0, description="seed of the split")
    near_duplicates: Literal["group", "drop", "ignore"] = Field(
        "group",
        description="group: never part near duplicates over splits that we make; "
        "drop: keep one of each; ignore: don't look for them",
    )
    max_quarantined: Fraction = Field(
        0.5, description="fail when a larger share of the pictures is quarantined"
    )
    shard_pictures: Count = Field(2048, description="pictures per Parquet shard")
    workers: Count | None = Field(None, description="processes; null: one per available CPU")

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1.0:
            raise ValueError("val_fraction + test_fraction must leave something to train on (< 1)")
        return self


Augmentation = Literal["none", "light", "standard", "strong"]
# Those of `positive` are for two classes.
Monitor = Literal[
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "val_macro_precision",
    "val_macro_recall",
    "val_macro_f1",
    "val_roc_auc",
    "val_positive_precision",
    "val_positive_recall",
    "val_positive_f1",
]


class StageSettings(Settings):
    """One stage of training: the head alone, or the whole network."""

    epochs: Count = Field(10, description="most epochs of this stage")
    lr: Rate | Literal["auto"] = Field(
        1e-3, description="peak learning rate; auto: what a range test finds, its curve is kept"
    )
    optimizer: str = Field("adamw", description="any optimizer of timm by name")
    weight_decay: float = Field(0.01, ge=0.0, description="weight decay")
    schedule: Literal["cosine", "step", "poly", "tanh", "constant"] = Field(
        "cosine", description="timm's learning rate schedule"
    )
    warmup_epochs: int = Field(0, ge=0, description="epochs of linear warm-up")
    layer_decay: float = Field(
        1.0, gt=0.0, le=1.0, description="learning rate of each layer as a share of the next one's"
    )
    frozen: tuple[str, ...] = Field(
        (), description="layers of the network that stay as they are, such as [conv_stem, blocks.0]"
    )
    augmentation: Augmentation = Field("none", description="named set of augmentations")
    randaugment: int = Field(
        0, ge=0, le=30, description="strength of RandAugment, besides the set; 0: off"
    )
    mixup: float = Field(
        0.0, ge=0.0, description="alpha of mixup in every other batch, besides the set; 0: off"
    )
    cutmix: float = Field(
        0.0, ge=0.0, description="alpha of CutMix in every other batch, besides the set; 0: off"
    )
    patience: Count | None = Field(
        None, description="stop after this many epochs without a better `monitor`; null: never"
    )

    @property
    def augments(self) -> bool:
        """Return whether the pictures of an epoch differ from those of another."""
        changes = (self.randaugment, self.mixup, self.cutmix)
        return self.augmentation != "none" or any(changes)


# A stage that is left out is None in Python and `skip` in YAML and JSON: a pipeline's parameters
# can't hold a null.
OptionalStage = Annotated[
    StageSettings | None,
    BeforeValidator(lambda value: None if value == "skip" else value),
    PlainSerializer(lambda stage: "skip" if stage is None else stage.model_dump(mode="json")),
]


class TrainSettings(Settings):
    """Which network is trained, from what, and how."""

    network: str = Field(
        "mobilenetv2_100",
        description="any network of timm by name, or mlp: a perceptron on pixels",
    )
    hidden: tuple[Count, ...] = Field(
        (256, 64), description="widths of the hidden layers of network mlp"
    )
    weights: str = Field(
        "hub", description="hub (timm's own) | none | a .safetensors or .pth file | s3://…"
    )
    normalisation: Literal["dataset", "network"] = Field(
        "network", description="mean and std of the training split, or the network's own"
    )
    size_px: int = Field(224, ge=8, le=1024, description="side of the square input, pixels")
    fit: Literal["squash", "crop", "pad"] = Field(
        "squash",
        description="squash: resize both sides; crop: resize the shorter, cut the centre; "
        "pad: resize the longer, fill with grey",
    )
    batch_size: Count = Field(32, description="pictures per step and device")
    head: OptionalStage = Field(
        default_factory=lambda: StageSettings(epochs=5, lr=1e-3),
        description="first stage, backbone frozen: a stage's settings, or skip",
    )
    whole: OptionalStage = Field(
        default_factory=lambda: StageSettings(epochs=10, lr=1e-4, augmentation="standard"),
        description="second stage, the whole network: a stage's settings, or skip",
    )
    monitor: Monitor = Field("val_macro_f1", description="what early stopping and `best` follow")
    keep: tuple[Monitor, ...] = Field(
        ("val_macro_f1", "val_loss"), description="a best checkpoint is kept for each of these"
    )
    positive: str | None = Field(
        None, description="the class that val_positive_… are of, of two; null: the second"
    )
    head_init: Literal["undecided", "xavier"] = Field(
        "undecided",
        description="how a new classifier begins; undecided: near equal probabilities",
    )
    imbalance: Literal["none", "weighted", "focal", "oversample"] = Field(
        "none",
        description="what is done about rare classes; weighted: their pictures count more in the "
        "loss; focal: pictures that are still wrong count more; oversample: every class has an "
        "equal share of an epoch",
    )
    focal_gamma: float = Field(
        2.0, ge=0.0, description="how little imbalance: focal minds pictures that are right"
    )
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="label smoothing of the loss")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before the classifier")
    gradient_clip: float | None = Field(None, gt=0.0, description="largest gradient norm")
    average_weights: Fraction = Field(
        0.0, description="decay of an exponential moving average of the weights; 0: off"
    )
    precision: Literal["auto", "32", "bf16", "16"] = Field(
        "auto", description="arithmetic; auto: bf16 where the hardware computes in it, else 32"
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field("auto", description="where to train")
    devices: Count | Literal["auto"] = Field("auto", description="accelerators to use")
    workers: int = Field(0, ge=0, description="loader processes; 0: load in the training process")
    probe_pictures: int = Field(
        5000,
        ge=0,
        description="training pictures that a linear probe on the untrained network's features "
        "learns from, to stand beside the model; 0: none",
    )
    seed: int = Field(42, ge=0, description="seed of initialisation, order and augmentation")

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.head is None and self.whole is None:
            raise ValueError("head and whole are both skipped: leave at least one stage to train")
        if self.head is not None and self.weights == "none" and self.whole is None:
            raise ValueError(
                "weights: none with the head stage alone would train on random features; "
                "set weights, or use the whole stage"
            )
        if self.network == "mlp" and self.weights != "none" and "." not in self.weights:
            raise ValueError(f"network mlp has no weights on a hub (got {self.weights}): set none")
        if self.monitor not in self.keep:
            raise ValueError(f"monitor ({self.monitor}) must be among keep {list(self.keep)}")
        return self


class SearchSettings(Settings):
    """Which train settings are searched for, and how; without a space, none."""

    space: dict[str, Any] = Field(
        default_factory=dict,
        description="train settings by dotted name: {low, high} with log or step, or a list of "
        "choices; `together`: a list of groups of settings; empty: no search",
    )
    trials: Count = Field(20, description="trials in all, over all workers")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how trials are drawn; tpe: where earlier ones were good"
    )
    pruner: Literal["median", "halving", "hyperband", "none"] = Field(
        "median",
        description="which trials are stopped early; median: those worse than most; halving: all "
        "but the best third, after startup_epochs, three times as many, and so on",
    )
    startup_trials: Count = Field(
        5, description="trials that are drawn at random and, with pruner median, never stopped"
    )
    startup_epochs: Count = Field(2, description="epochs before a trial may be stopped")
    workers: Count = Field(1, description="trials that a pipeline runs at the same time")
    storage: str | None = Field(
        None,
        description="SQLAlchemy URL that workers share; null: LINNET_SEARCH_STORAGE, or SQLite "
        "in the workspace",
    )
    seed: int = Field(42, ge=0, description="seed of the draws")


# YAML reads a bare `off` as false.
OptionalPrecision = Annotated[
    Literal["off", "auto", "required"],
    BeforeValidator(lambda value: "off" if value is False else value),
]


class ExportSettings(Settings):
    """How the checkpoint becomes an ONNX graph, and how closely it must agree."""

    calibrate: bool = Field(
        True, description="fit a temperature on the validation split and put it in the graph"
    )
    parity_pictures: Count = Field(256, description="validation pictures of the parity proof")
    max_probability_difference: float = Field(
        1e-3, gt=0.0, description="largest difference of a probability, torch against ONNX Runtime"
    )
    min_label_agreement: Fraction = Field(1.0, description="share of equal labels that is needed")
    flip: Literal["none", "horizontal"] = Field(
        "none",
        description="horizontal: the graph answers a picture and its mirror image and takes the "
        "mean of their scores, at twice the work",
    )
    int8: OptionalPrecision = Field(
        "off",
        description="a quantized graph; auto: it serves if it is as good and faster here; "
        "required: an error if it is not",
    )
    int8_calibration_pictures: Annotated[int, Field(ge=32)] = Field(
        128, description="training pictures that the ranges of int8 are measured on"
    )
    fp16: OptionalPrecision = Field(
        "off",
        description="a graph in half precision for a GPU, where int8 is off; chosen as int8 is",
    )
    max_accuracy_loss: float = Field(
        0.005, gt=0.0, lt=1.0, description="the accuracy of int8 or fp16 must fall by less"
    )

    @model_validator(mode="after")
    def _one_precision(self) -> Self:
        if self.int8 != "off" and self.fp16 != "off":
            raise ValueError(
                "int8 is for CPUs and fp16 for GPUs, and one graph serves: set one of them to off"
            )
        return self


class DecisionSettings(Settings):
    """How probabilities become answers: thresholds fitted on the validation split."""

    aim: Literal["none", "f1", "balanced_accuracy", "recall_at_precision", "cost"] = Field(
        "none",
        description="what thresholds are best at on validation; none: the most probable class; "
        "f1: of `positive`, or the mean over more than two classes; recall_at_precision: the most "
        "recall of `positive` where its precision is at least `precision`",
    )
    positive: str | None = Field(
        None, description="the class that is looked for, of two; null: the second"
    )
    precision: float = Field(
        0.9, gt=0.0, le=1.0, description="precision that aim recall_at_precision needs"
    )
    cost: dict[str, dict[str, Annotated[float, Field(ge=0.0)]]] = Field(
        default_factory=dict,
        description="for aim cost, {true class: {answer: cost}}; others cost 1, right ones 0",
    )
    fewest_pictures: Count = Field(
        10,
        description="a class with fewer validation pictures keeps its threshold; of two classes, "
        "an error",
    )
    cross_fit: bool = Field(
        True,
        description="of more than two classes, keep thresholds only if, fitted on four fifths of "
        "validation, they gain on the rest",
    )
    coverage: float | None = Field(
        None, gt=0.0, le=1.0, description="abstain so that this share of validation is answered"
    )
    abstain_below: Fraction | None = Field(
        None, description="abstain from answers with a lower probability"
    )

    @property
    def changes_answers(self) -> bool:
        """Return whether answers differ from the most probable class."""
        return self.aim != "none" or self.coverage is not None or self.abstain_below is not None

    @model_validator(mode="after")
    def _one_way_to_abstain(self) -> Self:
        if self.coverage is not None and self.abstain_below is not None:
            raise ValueError("coverage and abstain_below both say when to abstain: set one of them")
        if self.cost and self.aim != "cost":
            raise ValueError(f"cost is given, but aim is {self.aim}: set aim: cost")
        return self


class EvaluateSettings(Settings):
    """How the graph is measured on the test split."""

    batch_size: Count = Field(32, description="pictures decoded and answered together")
    bootstrap_samples: Annotated[int, Field(ge=100)] = Field(
        1000, description="resamples behind each interval"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="level of the intervals")
    calibration_bins: Annotated[int, Field(ge=2)] = Field(15, description="bins of the ECE")
    mistakes: int = Field(24, ge=0, description="most confident mistakes shown as pictures")
    explain: int = Field(
        8, ge=0, description="test pictures shown with what speaks for their answers; 0: none"
    )
    decision: DecisionSettings = DecisionSettings()
    robustness_pictures: int = Field(
        0, ge=0, description="test pictures answered again under each corruption; 0: none"
    )
    slices: tuple[str, ...] = Field(
        ("size",),
        description="parts of the test split to measure apart: size, folder, or a column of the "
        "source's CSV",
    )
    seed: int = Field(42, ge=0, description="seed of the resampling")


Metric = Literal[
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "roc_auc",
    "pr_auc",
    "log_loss",
    "calibration_error",
]
LOWER_IS_BETTER: frozenset[Metric] = frozenset({"log_loss", "calibration_error"})


class GateSettings(Settings):
    """What a model must show before it is released."""

    minimum: dict[Metric, float] = Field(
        default_factory=dict, description="smallest value of a metric that passes"
    )
    maximum: dict[Metric, float] = Field(
        default_factory=dict, description="largest value of a metric that passes"
    )
    minimum_corrupted_accuracy: Fraction | None = Field(
        None, description="smallest mean accuracy over corruptions; null: not asked for"
    )
    better_than_baseline: Metric = Field(
        "balanced_accuracy", description="metric that must beat the majority class's"
    )
    champion: Literal["compare", "ignore"] = Field(
        "compare", description="compare with the registry's champion on the same test pictures"
    )
    champion_alpha: float = Field(
        0.05, gt=0.0, lt=0.5, description="refuse when significantly worse at this level (McNemar)"
    )
    champion_margin: Fraction = Field(
        0.0,
        description="refuse when accuracy falls by more than this even if not significantly; "
        "0: significance alone decides",
    )


class ReleaseSettings(Settings):
    """Where the release goes and what it is called."""

    root: str | None = Field(
        None, description="folder or s3://bucket/prefix; null: `releases` in the workspace"
    )
    version: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$",
        description="a DNS label; null: the next free v1, v2, …",
    )
    sample_pictures: Count = Field(
        8, description="test pictures with their answers that go with the release, for warm-up"
    )
    approval: Literal["none", "required"] = Field(
        "none", description="required: no traffic before a person has approved (`linnet approve`)"
    )


class RunSettings(Settings):
    """One run of the pipeline, from labelled pictures to a release."""

    model: str = Field(
        "digits",
        pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$",
        description="registered model's name, a DNS label",
    )
    source: SourceSettings = SourceSettings()
    ingest: IngestSettings = IngestSettings()
    train: TrainSettings = TrainSettings()
    search: SearchSettings = SearchSettings()
    export: ExportSettings = ExportSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    gate: GateSettings = GateSettings()
    release: ReleaseSettings = ReleaseSettings()

    @model_validator(mode="after")
    def _a_space_of_train_settings(self) -> Self:
        if self.search.space:
            from linnet.search_space import read_space

            try:
                read_space(self.search.space, self.train)
            except SettingsError as error:
                raise ValueError(str(error)) from error
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of the pipelines by name; a pipeline takes those that it has."""
        sections = [name for name in type(self).model_fields if name not in ("model", "source")]
        return {
            "model": self.model,
            "source": self.section("source"),
            "search_workers": list(range(1, self.search.workers + 1)),
            **{f"{name}_settings": self.section(name) for name in sections},
        }

    def section(self, name: str) -> dict[str, Any]:
        """Return one section as plain JSON values without nulls, as it travels to a step."""
        values: dict[str, Any] = _without_nulls(self.model_dump(mode="json")[name])
        return values


def read_yaml(path: Path, sections: list[str]) -> dict[str, Any]:
    """Return the mapping that a settings file holds.

    Raises:
        SettingsError: the file is absent, not YAML or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(
            f"settings file {path} can't be read ({error.strerror}): check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise SettingsError(
            f"settings file {path} holds {type(values).__name__}, expected a mapping "
            f"with the sections {', '.join(sections)}"
        )
    return values


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(below) for key, below in value.items() if below is not None}
    return value


def apply_override(values: dict[str, Any], override: str) -> None:
    """Put what `key=value` or `section.key=value` says into values, read as YAML.

    Raises:
        SettingsError: it is of another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise SettingsError(
            f"override {override!r} is not of the form section.key=value, "
            "for example train.whole.epochs=3"
        )
    *parents, last = key.strip().split(".")
    for parent in parents:
        below = values.get(parent)
        if below is None:
            below = values[parent] = {}
        if not isinstance(below, dict):
            raise SettingsError(f"override {override!r}: {parent} is a value, not a section")
        values = below
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"override {override!r}: {text!r} is not a YAML value") from error


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> str:
    lines = []
    for problem in error.errors():
        location = [part for part in problem["loc"] if not isinstance(part, int)]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            names = _names(cls, [str(part) for part in location[:-1]])
            near = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
            lines.append(f"{key}: no such setting; {hint}")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            given = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
            lines.append(f"{key or where}: {message}{given}")
    return f"{where} can't be used:\n  " + "\n  ".join(lines)


def _names(cls: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        field = cls.model_fields.get(part)
        if field is None:
            continue
        candidates = (field.annotation, *get_args(field.annotation))
        below = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if below:
            cls = below[0]
    return list(cls.model_fields)
