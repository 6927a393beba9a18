"""What a batch can be told."""

import re
import zlib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from linnet.errors import SettingsError
from linnet.settings import Count, Settings

_SHARD = re.compile(r"(\d{1,4})/(\d{1,4})")


class BatchSettings(Settings):
    """How answers are computed and written."""

    part_pictures: Annotated[int, Field(ge=1, le=100_000)] = Field(
        2048, description="pictures in one file of answers; what a kill can lose"
    )
    csv: bool = Field(False, description="write each file of answers as CSV, too")
    threads: Count | None = Field(
        None, description="threads that decode and answer; null: one per available CPU"
    )


@dataclass(frozen=True)
class Shard:
    """One of several shares of the pictures, counted from 1."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Return the shard that `2/8` means.

        Raises:
            SettingsError: it is of another form, or there is no such shard.
        """
        found = _SHARD.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise SettingsError(
                f"shard {text!r} is not of the form 2/8, the second of eight: give one from 1/8 to "
                "8/8 to each process"
            )
        return cls(int(found[1]), int(found[2]))

    def has(self, key: str) -> bool:
        """Return whether a picture belongs here; it depends on its own key alone."""
        return zlib.crc32(key.encode()) % self.of == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}-of-{self.of}"
