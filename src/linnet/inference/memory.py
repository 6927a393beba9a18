"""What requests may take of a limited memory, so that a flood is refused and nobody is killed."""

import logging
from pathlib import Path

from linnet.inference.queueing import Bodies
from linnet.inference.settings import ServeSettings
from linnet.inference.v2 import Buffer
from linnet.machine import available_cpus, memory_limit

logger = logging.getLogger(__name__)

# Bytes for each pixel while a picture is decoded: a progressive JPEG's coefficients; WebP's planes.
_JPEG = 6
_OTHERS = 16
_STATM = Path("/proc/self/statm")
_PAGE = 4096


class Memory:
    """Limits that follow from the memory that is left once the models are loaded.

    Half of it is for pictures that are being decoded, a quarter for the bodies of requests, and a
    quarter for all the rest. Where nothing limits the memory, the settings alone count.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self.bodies = Bodies(settings.bodies_bytes)
        self._settings = settings
        self._threads = settings.decode_threads or available_cpus()
        self._decode_bytes: int | None = None

    def max_pixels(self, encoded: Buffer) -> int:
        """Return how many pixels a picture may have."""
        most = self._settings.max_pixels
        if self._decode_bytes is None:
            return most
        each = _JPEG if bytes(encoded[:2]) == b"\xff\xd8" else _OTHERS
        return min(most, self._decode_bytes // (self._threads * each))

    def fit(self) -> None:
        """Fit the limits into what is left now."""
        if (limit := memory_limit()) is not None:
            self.share(max(0, limit - _resident_bytes()))

    def share(self, free_bytes: int) -> None:
        """Share so many bytes among the requests."""
        self._decode_bytes = free_bytes // 2
        self.bodies.most = min(self._settings.bodies_bytes, free_bytes // 4)
        logger.info(
            "%d MiB of memory are left for requests: at most %d MiB of bodies, pictures of %.1f "
            "million pixels as JPEG and %.1f in other formats",
            free_bytes >> 20,
            self.bodies.most >> 20,
            self.max_pixels(b"\xff\xd8") / 1e6,
            self.max_pixels(b"") / 1e6,
        )


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE
    except OSError:
        return 0
