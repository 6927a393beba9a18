"""Settings of a look for drift."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from linnet.settings import Count, Fraction, Settings


class DriftSettings(Settings):
    """How new pictures are compared with those that the release was measured on."""

    called: ClassVar[str] = "drift settings"

    pictures: Count = Field(
        500, description="most pictures of a look: the newest of a log, drawn ones of a folder"
    )
    fewest_pictures: Count = Field(50, description="with fewer, a look says nothing")
    hours: float | None = Field(
        None, gt=0.0, description="of a log, only what was asked in the last hours; null: any"
    )
    false_alarms: Annotated[float, Field(gt=0.0, lt=0.5)] = Field(
        0.01, description="share of looks that may find drift where there is none"
    )
    smallest_shift: Fraction = Field(
        0.1,
        description="smaller shifts are not minded, however certain: largest difference of two "
        "distributions, or of a class's shares",
    )
    permutations: Annotated[int, Field(ge=99)] = Field(
        1999, description="random exchanges that chance is measured by"
    )
    seed: int = Field(42, ge=0, description="seed of the exchanges and of what is drawn")

    @model_validator(mode="after")
    def _enough_permutations(self) -> Self:
        least = round(1 / self.false_alarms + 0.5) - 1
        if self.permutations < least:
            raise ValueError(
                f"{self.permutations} permutations can't show less than a chance of "
                f"{1 / (1 + self.permutations):g}: for false_alarms {self.false_alarms:g} set "
                f"permutations to {least} or more"
            )
        return self
