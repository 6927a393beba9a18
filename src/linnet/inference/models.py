"""The models of a server: opened and checked, warmed up, answering, replaced while they answer."""

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from linnet.data.preprocessing import Preprocessing, prepare, prepare_pixels
from linnet.errors import LinnetError, PictureError, ReleaseError, RequestError
from linnet.inference.answers import Answers, Rule
from linnet.inference.batch_size import BatchSize, measure
from linnet.inference.engine import Decoders, Engine, Pixels, Prepare
from linnet.inference.feedback import Feedback
from linnet.inference.memory import Memory
from linnet.inference.metrics import Metrics, ModelMetrics
from linnet.inference.prediction_log import PredictionLog
from linnet.inference.queueing import Waiting
from linnet.inference.session import Session
from linnet.inference.settings import ServeSettings
from linnet.inference.v2 import Buffer, Renderer, short
from linnet.machine import available_cpus
from linnet.release.opening import Release, open_release
from linnet.release.samples import Sample, read_samples
from linnet.stores.connections import Connections

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# What is wrong with a picture, and what the sender can do; 413 for what is too large, else 400.
_MOVES = {
    "not_a_picture": "send a JPEG, PNG, WebP, TIFF, BMP or GIF",
    "broken": "send the whole file",
    "too_large": "send a smaller picture",
    "unsupported": "convert it to 8-bit RGB",
}
# Pictures that a worker always has in sight: less would let it wait between two runs.
_LEAST_PER_WORKER = 16
State = Literal["LOADING", "READY", "UNAVAILABLE"]


@dataclass(frozen=True)
class Address:
    """Where a model comes from: `name`, if given, is what it is called here."""

    release: str
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Return the address that `RELEASE` or `NAME=RELEASE` means."""
        name, equals, release = text.partition("=")
        if equals and _NAME.fullmatch(name):
            return cls(release, name)
        return cls(text)


@dataclass(frozen=True)
class Kept:
    """What is kept of answers beyond their metrics."""

    log: PredictionLog
    feedback: Feedback


class ServedModel:
    """One release that answers requests, behind a queue of its own."""

    def __init__(
        self,
        name: str,
        release: Release,
        engine: Engine,
        waiting: Waiting,
        metrics: ModelMetrics,
        memory: Memory,
        kept: "Kept",
    ) -> None:
        manifest = release.manifest
        self.name = name
        self.version = release.version
        self.release = f"{release.model}/{release.version}"
        self.manifest = manifest
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.spec = Preprocessing.from_json(manifest["preprocessing"])
        self.metrics = metrics
        self.renderer = Renderer(name, self.version, self.classes, self.release)
        self.waiting = waiting
        self._engine = engine
        self._memory = memory
        self._kept = kept
        self._rule = Rule.of(manifest)

    async def answer(
        self, *, pixels: Pixels | None, encoded: Sequence[Buffer] | None, request_id: str = ""
    ) -> Answers:
        """Answer decoded pictures [N, H, W, 3] or encoded ones.

        Raises:
            RequestError: a picture can't be used, or the queue is full.
        """
        count = len(encoded or ()) if pixels is None else len(pixels)
        with self.waiting.taking(count):
            if pixels is not None and pixels.shape[1:] == self.shape:
                probabilities = await self._engine.classify(pixels)
            else:
                probabilities = await self._engine.prepare_and_classify(
                    self._resizes(pixels) if pixels is not None else self._decodes(encoded or ())
                )
        answers = self._rule.answer(probabilities)
        self.metrics.answered(answers)
        self._kept.log.note(
            self.name,
            self.release,
            self.classes,
            request_id=request_id,
            pixels=pixels,
            encoded=encoded,
            answers=answers,
        )
        if self._kept.feedback.on:
            labels = [self.classes[best] for best in answers.best]
            self._kept.feedback.remember(self.name, self.release, request_id, labels)
        return answers

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of a prepared picture."""
        return (self.spec.size_px, self.spec.size_px, 3)

    async def close(self) -> None:
        """Finish what was accepted and stop the threads."""
        await self.waiting.empty()
        await asyncio.to_thread(self._engine.close)

    def _decodes(self, encoded: Sequence[Buffer]) -> list[Prepare]:
        many = len(encoded) > 1
        return [
            partial(self._decode, picture, number if many else None)
            for number, picture in enumerate(encoded)
        ]

    def _decode(self, picture: Buffer, number: int | None) -> Pixels:
        try:
            most = self._memory.max_pixels(picture)
            pixels = prepare(bytes(picture), self.spec, max_pixels=most)
        except PictureError as error:
            which = "the picture" if number is None else f"picture {number}"
            raise RequestError(
                f"{which} can't be used ({error.detail}): "
                f"{_MOVES.get(error.reason, 'send another one')}",
                status=413 if error.reason == "too_large" else 400,
            ) from error
        return pixels[np.newaxis]

    def _resizes(self, pixels: Pixels) -> list[Prepare]:
        return [partial(self._resize, picture) for picture in pixels]

    def _resize(self, picture: Pixels) -> Pixels:
        return prepare_pixels(picture, self.spec)[np.newaxis]


@dataclass
class _Entry:
    address: Address
    model: ServedModel | None = None
    state: State = "LOADING"
    reason: str = ""


class Models:
    """The models of one server, by name. All of it is called on the event loop's thread."""

    def __init__(
        self,
        settings: ServeSettings,
        metrics: Metrics,
        memory: Memory,
        kept: Kept,
        *,
        scratch: Path,
        connections: Connections | None,
    ) -> None:
        cpus = available_cpus()
        self._settings = settings
        self._metrics = metrics
        self._memory = memory
        self._kept = kept
        self._scratch = scratch
        self._connections = connections
        self._workers = settings.workers or cpus
        self._wide_threads = cpus if settings.workers is None else settings.workers
        self._decoders = Decoders(settings.decode_threads or cpus)
        self._entries: dict[str, _Entry] = {}
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._loads = 0
        self.all_loaded = False

    def names(self) -> list[str]:
        """Return the names of all models, ready or not."""
        return list(self._entries)

    def states(self) -> list[tuple[str, str, State, str]]:
        """Return name, version, state and reason of each model."""
        return [
            (name, entry.model.version if entry.model else "", entry.state, entry.reason)
            for name, entry in self._entries.items()
        ]

    @property
    def ready(self) -> bool:
        """Return whether every model that should be there answers."""
        return self.all_loaded and all(
            entry.model is not None
            for entry in self._entries.values()
            if entry.state != "UNAVAILABLE"
        )

    def peek(self, name: str) -> ServedModel | None:
        """Return the model of this name if it answers."""
        entry = self._entries.get(name)
        return entry.model if entry is not None else None

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return a model that answers.

        Raises:
            RequestError: 404 where there is none of this name and version, 503 while it loads.
        """
        entry = self._entries.get(name)
        if entry is None or (entry.model is None and entry.state == "UNAVAILABLE"):
            if not self.all_loaded:
                raise RequestError(
                    "models are still loading: try again in a moment", status=503, retry_after_s=1
                )
            known = ", ".join(n for n, e in self._entries.items() if e.model) or "none"
            raise RequestError(f"there is no model {short(name)}: known are {known}", status=404)
        if entry.model is None:
            raise RequestError(
                f"{name} is still loading: try again in a moment", status=503, retry_after_s=1
            )
        if version is not None and version != entry.model.version:
            raise RequestError(
                f"{name} has no version {short(version)}: served is {entry.model.version}",
                status=404,
            )
        return entry.model

    def full(self) -> RequestError | None:
        """Return the refusal of one more picture where no model has room for it."""
        serving = [entry.model for entry in self._entries.values() if entry.model is not None]
        refusals = [model.waiting.refusal(1) for model in serving]
        return refusals[0] if refusals and all(refusals) else None

    async def load_all(self, addresses: Sequence[Address]) -> None:
        """Load the models a server starts with.

        Raises:
            LinnetError: one can't be served; says why.
        """
        for address in addresses:
            name, model = await self._opened(address)
            if name in self._entries:
                await model.close()
                raise ReleaseError(
                    f"two releases are called {name}: serve one, or give it another name, such as "
                    f"other={address.release}"
                )
            self._put(name, address, model)
        self.all_loaded = True

    async def reload(self, name: str) -> None:
        """Load a model again from its address and put it in place of the one that answers.

        What the old one has accepted it still answers.

        Raises:
            RequestError: there is no such model, or its release can't be served now.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise RequestError(
                f"there is no model {short(name)}: known are {', '.join(self._entries)}",
                status=404,
            )
        async with self._loading:
            try:
                _, model = await self._opened(entry.address, name)
            except LinnetError as error:
                entry.reason = str(error)
                raise RequestError(f"{name} can't be loaded: {error}", status=400) from error
            old = entry.model
            self._put(name, entry.address, model)
            if old is not None:
                self._retire(old)

    def unload(self, name: str) -> None:
        """Stop serving a model; what it has accepted it still answers.

        Raises:
            RequestError: there is no such model.
        """
        model = self.find(name)
        entry = self._entries[name]
        entry.model, entry.state, entry.reason = None, "UNAVAILABLE", "unloaded"
        self._retire(model)

    async def close(self) -> None:
        """Finish everything that was accepted and stop all threads."""
        for entry in self._entries.values():
            if entry.model is not None:
                self._retire(entry.model)
                entry.model, entry.state = None, "UNAVAILABLE"
        await asyncio.gather(*self._closing)
        await asyncio.to_thread(self._decoders.close)

    async def _opened(self, address: Address, name: str | None = None) -> tuple[str, ServedModel]:
        loop = asyncio.get_running_loop()
        self._loads += 1
        scratch = self._scratch / str(self._loads)
        started = time.perf_counter()
        parts = await asyncio.to_thread(self._open, address, scratch)
        name = name or address.name or parts.release.model
        classes = parts.release.manifest["classes"]
        metrics = ModelMetrics(
            self._metrics, name, f"{parts.release.model}/{parts.release.version}", classes
        )
        settings = self._settings
        engine = Engine(
            parts.narrow,
            parts.wide,
            shape=parts.shape,
            workers=self._workers,
            max_batch=parts.batch.pictures,
            max_wait_s=settings.max_wait_ms / 1000,
            decoders=self._decoders,
            watch=metrics,
            loop=loop,
        )
        waiting = Waiting(
            name,
            wait_s=settings.queue_wait_ms / 1000,
            least=_LEAST_PER_WORKER * self._workers,
            most=settings.queue_pictures,
        )
        model = ServedModel(name, parts.release, engine, waiting, metrics, self._memory, self._kept)
        try:
            await warm_up(parts, engine, model.spec, self._settings.warm_up_tolerance)
        except BaseException:
            await model.close()
            raise
        took = time.perf_counter() - started
        self._memory.fit()
        metrics.batch.set(parts.batch.pictures)
        logger.info(
            "%s answers from %s in %.2f s; batches of at most %d (CPU ms a picture by size: %s)",
            name,
            parts.release.uri,
            took,
            parts.batch.pictures,
            parts.batch.cpu_ms or "not measured",
        )
        return name, model

    def _open(self, address: Address, scratch: Path) -> "_Parts":
        """Fetch and check a release and load its graph; takes a while: not on the event loop."""
        release = open_release(address.release, scratch=scratch, connections=self._connections)
        digest = release.manifest["files"][release.graph_path.name]["sha256"]
        narrow = Session(release.graph_path, sha256=digest, threads=1)
        threads = self._wide_threads
        wide = Session(release.graph_path, threads=threads) if threads > 1 else None
        size_px = Preprocessing.from_json(release.manifest["preprocessing"]).size_px
        shape = (size_px, size_px, 3)
        given = self._settings.max_batch
        batch = measure(narrow, shape) if given == "auto" else BatchSize(given, {})
        return _Parts(release, narrow, wide, read_samples(release.samples_path), shape, batch)

    def _put(self, name: str, address: Address, model: ServedModel) -> None:
        self._entries[name] = _Entry(address, model, "READY")
        model.metrics.ready.set(1)
        model.metrics.queued.set_function(lambda: model.waiting.pictures)
        model.metrics.queue_limit.set_function(lambda: model.waiting.limit)

    def _retire(self, model: ServedModel) -> None:
        served = any(
            entry.model is not None and entry.model.metrics.same(model.metrics)
            for entry in self._entries.values()
            if entry.model is not model
        )
        if not served:
            with suppress(KeyError):
                model.metrics.forget()
        task = asyncio.create_task(model.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


@dataclass(frozen=True)
class _Parts:
    release: Release
    narrow: Session
    wide: Session | None
    samples: list[Sample]
    shape: tuple[int, int, int]
    batch: BatchSize


async def warm_up(parts: _Parts, engine: Engine, spec: Preprocessing, tolerance: float) -> None:
    """Answer the release's sample pictures, alone and together, and compare with the record.

    Raises:
        ReleaseError: an answer is another one than the release says.
    """
    samples = parts.samples
    if not samples:
        raise ReleaseError(f"{parts.release.uri} has no sample pictures: release the graph again")
    pictures = await asyncio.to_thread(
        lambda: np.stack([prepare(sample.encoded, spec) for sample in samples])
    )
    expected = np.stack([sample.probabilities for sample in samples])
    alone = await engine.classify(pictures[:1])
    together = await engine.classify(pictures)
    for found, wanted in ((alone, expected[:1]), (together, expected)):
        if found.shape != wanted.shape or not np.isfinite(found).all():
            raise ReleaseError(
                f"{parts.release.uri} answers its samples with shape {list(found.shape)}, "
                f"recorded is {list(wanted.shape)}: release the graph again"
            )
        difference = np.abs(found - wanted).max(axis=1)
        worst = int(difference.argmax())
        if difference[worst] > tolerance:
            raise ReleaseError(
                f"{parts.release.uri} does not answer here as it was released: probabilities of "
                f"its sample {samples[worst].key!r} differ by {difference[worst]:.2g}, allowed is "
                f"{tolerance:.2g}. Release the graph again, or raise warm_up_tolerance"
            )
