"""Which releases gave the last answers: how a canary's share looks from the outside."""

import threading
from collections import Counter, deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """How many of the last answers a release gave."""

    release: str
    answers: int


class Shares:
    """The releases of the last answers. Safe to use from several threads."""

    def __init__(self, most: int) -> None:
        self._last: deque[str] = deque(maxlen=most)
        self._lock = threading.Lock()

    def count(self, release: str) -> list[Share]:
        """Count an answer, and return the shares of the last ones, the largest first."""
        with self._lock:
            self._last.append(release)
            counted = Counter(self._last)
        return [Share(name, answers) for name, answers in counted.most_common()]
