"""One stage of training as Lightning sees it: what a step computes and what is learnt."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import CatMetric, MeanMetric

from linnet.errors import DivergedError, TrainingError
from linnet.evaluation.metrics import confusion, validation_metrics
from linnet.settings import StageSettings, TrainSettings
from linnet.training.clock import Clock
from linnet.training.loading import Batch, seed_of
from linnet.training.losses import Loss
from linnet.training.network import Classifier, Head, classifier_parameters, drop, layers_named

# On a GPU, looking at each loss as it comes would make the CPU wait for every step.
_LOSSES_LOOKED_AT_TOGETHER = 32


class Stage(pl.LightningModule):
    """The loop's view of a stage: `head` trains the last layer, `whole` the network.

    In stage `head` the backbone stays in eval mode, so its batch normalisation doesn't move. With
    `cached`, batches hold the head's features, float32 `[N, features]`, in place of pictures.
    `counts` are the training pictures of each class, `lr` is the peak learning rate, `positive`
    the class that is looked for, of two.
    """

    def __init__(
        self,
        name: str,
        model: Classifier,
        stage: StageSettings,
        settings: TrainSettings,
        *,
        counts: Sequence[int],
        lr: float,
        steps_per_epoch: int,
        head: Head | None = None,
        cached: bool = False,
        positive: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.stage = stage
        self.settings = settings
        self.lr = lr
        self.steps_per_epoch = steps_per_epoch
        self.head = head
        self.cached = cached
        self.loss = Loss(settings, counts)
        self.frozen = layers_named(model.network, stage.frozen, f"train.{name}.frozen")
        self._freeze()
        self.positive = positive
        decay = settings.average_weights
        self.average = ModelEmaV3(self.learner, decay, use_warmup=True) if decay else None
        self.schedule: Scheduler | None = None
        self.clock = Clock()
        self.losses: list[Tensor] = []
        self.train_loss = MeanMetric(nan_strategy="disable")
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_probabilities = CatMetric(nan_strategy="disable")
        self.val_labels = CatMetric(nan_strategy="disable")
        self.validation: dict[str, float] = {}
        self.confusion: list[list[int]] = []

    @property
    def learner(self) -> nn.Module:
        """Return the module that this stage trains: the last layer, or everything."""
        return self.model if self.head is None else self.head.layer

    def weights(self) -> dict[str, Tensor]:
        """Return the network's tensors under timm's names; averaged ones where they are on."""
        tensors = self.model.network.state_dict()
        if self.average is not None:
            averaged = self.average.module.state_dict()
            prefix = "network." if self.head is None else ""
            into = "" if self.head is None else f"{self.head.name}."
            tensors |= {into + key.removeprefix(prefix): v for key, v in averaged.items()}
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits of a batch by the weights that are being trained."""
        return self._logits(self.learner, inputs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Return the loss of one batch."""
        inputs, labels = batch
        loss: Tensor = self.loss(self(inputs).float(), labels)
        self.train_loss.update(loss.detach(), weight=len(inputs))
        self.losses.append(loss.detach())
        if loss.device.type == "cpu" or len(self.losses) == _LOSSES_LOOKED_AT_TOGETHER:
            self._check_losses(index)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Add one batch to the metrics."""
        inputs, labels = batch
        learner = self.learner if self.average is None else self.average.module
        logits = self._logits(learner, inputs).float()
        self.val_loss.update(functional.cross_entropy(logits, labels), weight=len(inputs))
        self.val_probabilities.update(logits.softmax(dim=1))
        self.val_labels.update(labels)

    def on_train_epoch_start(self) -> None:
        """Make the epoch's chance depend on nothing but seed, stage and epoch."""
        torch.manual_seed(
            seed_of(self.settings.seed, self.name, self.current_epoch, self.global_rank)
        )
        self.learn()
        self.losses.clear()
        self.train_loss.reset()
        self.clock.begin(self.device)

    def learn(self) -> None:
        """Put what is trained into training mode, and the rest into eval mode."""
        self.model.train(self.name == "whole")
        if self.head is not None:
            self.head.layer.train()
        for layer in self.frozen:
            layer.eval()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        """Set the learning rate of this update; a function of its number alone."""
        self.clock.lap("data_wait")
        assert self.schedule is not None
        self.schedule.step_update(self.global_step)

    def on_before_backward(self, loss: Tensor) -> None:
        """Note when forward has ended."""
        self.clock.lap("forward")

    def on_after_backward(self) -> None:
        """Note when backward has ended."""
        self.clock.lap("backward")

    def on_train_batch_end(self, outputs: Any, batch: Batch, index: int) -> None:
        """Move the average towards the new weights."""
        if self.average is not None:
            self.average.update(self.learner, step=self.global_step)
        self.clock.end_step()

    def on_validation_epoch_start(self) -> None:
        """Begin new metrics."""
        for metric in (self.val_loss, self.val_probabilities, self.val_labels):
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        """Gather the epoch's validation metrics, over all processes."""
        self.validation = {"val_loss": float(self.val_loss.compute())}
        probabilities = self.val_probabilities.compute().cpu().numpy()
        labels = self.val_labels.compute().long().cpu().numpy()
        if math.isfinite(self.validation["val_loss"]):
            measured = validation_metrics(labels, probabilities, positive=self.positive)
            self.validation |= {f"val_{name}": value for name, value in measured.items()}
            self.confusion = confusion(labels, probabilities).tolist()

    def on_train_epoch_end(self) -> None:
        """Look at what is left of the losses, and at the validation's."""
        self._check_losses(self.steps_per_epoch - 1)
        if not math.isfinite(self.validation["val_loss"]):
            raise self._not_a_number("validation loss", self.validation["val_loss"], None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer, and make its schedule."""
        optimizer = self.new_optimizer(self.lr)
        self.schedule = self._schedule(optimizer)
        return optimizer

    def new_optimizer(self, lr: float) -> torch.optim.Optimizer:
        """Return timm's optimizer of the stage's name for what is trained.

        Raises:
            TrainingError: timm has no such optimizer, with the nearest names, or the network has
                no order of layers.
        """
        name = self.stage.optimizer
        known = [str(each) for each in list_optimizers()]
        if name.lower() not in known:
            near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
            raise TrainingError(
                f"train.{self.name}.optimizer {name!r} is not one of timm's: "
                + (f"did you mean {' or '.join(near)}?" if near else "try adamw or sgd")
            )
        layer_decay = self.stage.layer_decay if self.stage.layer_decay < 1 else None
        try:
            optimizer: torch.optim.Optimizer = create_optimizer_v2(
                self.model.network if self.head is None else self.head.layer,
                opt=name,
                lr=lr,
                weight_decay=self.stage.weight_decay,
                layer_decay=layer_decay if self.head is None else None,
            )
        except (AttributeError, AssertionError) as error:
            raise TrainingError(
                f"train.{self.name}.layer_decay {layer_decay} can't be had for "
                f"{self.settings.network}, whose layers timm has no order of: set it to 1"
            ) from error
        return optimizer

    def learning_rate(self) -> float:
        """Return the learning rate of the last update, of the last layer if they differ."""
        return max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups)

    def _schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        schedule: Scheduler
        schedule, _ = create_scheduler_v2(
            optimizer,
            sched=self.stage.schedule,
            num_epochs=self.stage.epochs,
            decay_epochs=max(1, self.stage.epochs // 3),
            warmup_epochs=self.stage.warmup_epochs,
            warmup_lr=self.lr / 100,
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        return schedule

    def _freeze(self) -> None:
        learnt = list(self.model.parameters())
        if self.name == "head":
            learnt = classifier_parameters(self.model.network)
        self.model.requires_grad_(False)
        for parameter in learnt:
            parameter.requires_grad_(True)
        for layer in self.frozen:
            layer.requires_grad_(False)

    def _logits(self, learner: nn.Module, inputs: Tensor) -> Tensor:
        if self.head is None:
            logits: Tensor = learner(inputs)
            return logits
        if self.cached:
            features = inputs
        else:
            with torch.no_grad():
                features = self.model.features(inputs)
        logits = learner(drop(features, self.settings.dropout, self.training and learner.training))
        return logits

    def _check_losses(self, last_step: int) -> None:
        """Raise DivergedError at the first loss that is not a number."""
        losses, self.losses = self.losses, []
        if not losses:
            return
        values = torch.stack(losses).tolist()
        for step, value in enumerate(values, start=last_step + 1 - len(values)):
            if not math.isfinite(value):
                raise self._not_a_number("loss", value, step + 1)

    def _not_a_number(self, what: str, value: float, step: int | None) -> DivergedError:
        where = f"stage {self.name}, epoch {self.current_epoch + 1}"
        if step is not None:
            where += f", step {step} of {self.steps_per_epoch}"
        return DivergedError(
            f"the {what} became {value} in {where}, at learning rate {self.learning_rate():.3g}: "
            f"lower train.{self.name}.lr, add train.{self.name}.warmup_epochs, set "
            "train.gradient_clip, or use train.precision: 32"
        )
