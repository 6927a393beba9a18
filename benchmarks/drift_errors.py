"""How often a look for drift finds what is not there, and how soon what is.

    python -m benchmarks.drift_errors RELEASE PICTURES OTHERS

PICTURES are held out pictures of what the release was trained on, one folder a class; OTHERS are of
something that it does not know. Each trial draws a reference and a window from PICTURES, so that
without a change nothing tells them apart; then the window's pictures are changed. Prints the shares
of looks that find drift, as Markdown; those without a change with 1.96 standard errors.
"""

import argparse
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from linnet.data.preprocessing import Preprocessing
from linnet.inference.answers import Rule
from linnet.inference.session import Portions
from linnet.monitoring.comparison import compare
from linnet.monitoring.features import Sample, measure
from linnet.monitoring.settings import DriftSettings
from linnet.release.opening import Release, open_release

log = logging.getLogger(__name__)

REFERENCE = 400
WINDOWS = (50, 100, 200)
RATES = (0.01, 0.05, 0.1)
PERMUTATIONS = 199

Change = Callable[[Image.Image], Image.Image]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("release")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("others", type=Path)
    parser.add_argument("--quiet-looks", type=int, default=10_000, help="looks without drift")
    parser.add_argument("--looks", type=int, default=200, help="looks with drift")
    given = parser.parse_args()
    release = open_release(given.release, scratch=Path("/tmp/linnet-drift"))
    files = sorted(given.pictures.glob("*/*"))
    labels = np.array([file.parent.name for file in files])
    pool = _measured(release, (file.read_bytes() for file in files))
    classes = tuple(release.manifest["classes"])
    log.info(
        "%s %s, %d pictures; references of %d, %d permutations\n",
        *(release.model, release.version, len(pool), REFERENCE, PERMUTATIONS),
    )
    _show_false_alarms(pool, classes, given.quiet_looks)
    _show_found(_drifts(release, files, labels, pool, given.others), pool, classes, given.looks)


def _show_false_alarms(pool: Sample, classes: tuple[str, ...], looks: int) -> None:
    log.info("| pictures of a look | %s |", " | ".join(f"promised {rate:.0%}" for rate in RATES))
    log.info("| ---: | %s |", " | ".join("---:" for _ in RATES))
    for window in WINDOWS:
        chances = []
        for trial in range(looks):
            random = np.random.default_rng([window, trial])
            order = random.permutation(len(pool))
            reference, now = order[:REFERENCE], order[REFERENCE : REFERENCE + window]
            shifts = _compared(pool.rows(reference), pool.rows(now), classes, trial)
            chances.append(min(shift.chance for shift in shifts))
        found = (np.array(chances)[:, None] <= np.array(RATES)[None]).mean(axis=0)
        errors = 1.96 * np.sqrt(found * (1 - found) / looks)
        cells = (f"{share:.2%} ± {error:.2%}" for share, error in zip(found, errors, strict=True))
        log.info("| %d | %s |", window, " | ".join(cells))
    log.info("")


def _show_found(
    drifts: Iterator[tuple[str, Sample, np.ndarray]],
    pool: Sample,
    classes: tuple[str, ...],
    looks: int,
) -> None:
    log.info("| what changed | %s | found by |", " | ".join(f"{each} pictures" for each in WINDOWS))
    log.info("| --- | %s | --- |", " | ".join("---:" for _ in WINDOWS))
    settings = DriftSettings()
    for name, changed, weights in drifts:
        shares, named = [], []
        for window in WINDOWS:
            found = 0
            for trial in range(looks):
                random = np.random.default_rng([window, trial])
                reference = random.permutation(len(pool))[:REFERENCE]
                chance = _without(weights, reference, len(pool))
                now = random.choice(len(weights), window, p=chance)
                shifts = _compared(pool.rows(reference), changed.rows(now), classes, trial)
                drifted = [
                    shift
                    for shift in shifts
                    if shift.chance <= settings.false_alarms
                    and shift.distance >= settings.smallest_shift
                ]
                found += bool(drifted)
                named += [max(drifted, key=lambda s: s.distance).name] if drifted else []
            shares.append(found / looks)
        often = max(set(named), key=named.count) if named else "–"
        log.info("| %s | %s | %s |", name, " | ".join(f"{share:.0%}" for share in shares), often)


def _without(weights: np.ndarray, reference: np.ndarray, known: int) -> np.ndarray:
    """Return how likely each picture is now: none of the reference, the known ones' sum kept."""
    left = weights.copy()
    left[reference] = 0.0
    left[:known] *= weights[:known].sum() / left[:known].sum()
    return left / left.sum()


def _compared(reference: Sample, now: Sample, classes: tuple[str, ...], seed: int):  # type: ignore[no-untyped-def]
    return compare(
        reference,
        now,
        classes,
        false_alarms=max(RATES),
        smallest_shift=0.0,
        permutations=PERMUTATIONS,
        seed=seed,
    )


def _drifts(
    release: Release, files: list[Path], labels: np.ndarray, pool: Sample, others: Path
) -> Iterator[tuple[str, Sample, np.ndarray]]:
    """Yield names, the pictures of a drifted world, and how likely each of them is."""
    even = np.ones(len(files))
    changes: dict[str, Change] = {
        "blur, radius 1 px": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        "blur, radius 2 px": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
        "darker by a quarter": lambda image: ImageEnhance.Brightness(image).enhance(0.75),
        "less contrast, × 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        "JPEG of quality 15": lambda image: _recompressed(image, 15),
        "half the size": lambda image: image.resize((image.width // 2, image.height // 2)),
    }
    for name, change in changes.items():
        yield name, _measured(release, (_changed(file, change) for file in files)), even
    side = Image.open(files[0]).size
    unknown = sorted(path for path in others.rglob("*") if path.suffix in (".jpg", ".png"))
    strangers = _measured(
        release, (_changed(file, lambda image: image.resize(side)) for file in unknown[:400])
    )
    both = Sample(
        np.concatenate([pool.values, strangers.values]),
        np.concatenate([pool.answers, strangers.answers]),
    )
    for share in (0.1, 0.25, 0.5):
        weights = np.concatenate(
            [even * (1 - share) / len(even), np.full(len(strangers), share / len(strangers))]
        )
        yield f"{share:.0%} of an unknown class", both, weights
    first = sorted(set(labels))[0]
    for times in (2, 3):
        weights = np.where(labels == first, float(times), 1.0)
        yield f"one class {times} times as frequent", pool, weights


def _measured(release: Release, encoded: Iterator[bytes]) -> Sample:
    return measure(
        encoded,
        Portions(release.graph_path),
        Preprocessing.from_json(release.manifest["preprocessing"]),
        Rule.of(release.manifest),
    )


def _changed(file: Path, change: Change) -> bytes:
    with Image.open(file) as opened:
        image = change(opened.convert("RGB"))
    encoded = io.BytesIO()
    # As good as lossless, so that only the change tells.
    image.save(encoded, "JPEG", quality=95, subsampling=0)
    return encoded.getvalue()


def _recompressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


if __name__ == "__main__":
    main()
