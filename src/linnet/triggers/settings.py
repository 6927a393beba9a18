"""Settings of `linnet watch`: what is watched, and what a trigger starts."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from linnet.monitoring.settings import DriftSettings
from linnet.settings import Rate, Settings


class DriftWatchSettings(Settings):
    """Looks for drift by the watching process itself."""

    source: str = Field(description="prediction log or folder of pictures, a path or s3://…")
    every_s: Rate = Field(24 * 3600.0, description="time between two looks, seconds")
    settings: DriftSettings = DriftSettings()


class ClusterSettings(Settings):
    """Where runs are submitted to."""

    endpoint: str = Field("http://127.0.0.1:8888", description="Kubeflow Pipelines' API or UI")
    namespace: str | None = Field(None, description="profile, where Kubeflow is shared")
    pipeline: Path | None = Field(None, description="compiled pipeline; null: the one shipped")
    roll_out: Path | None = Field(
        None, description="rollout settings (YAML): then move the traffic to the release"
    )
    service_account: str | None = Field(None, description="ServiceAccount of the run's pods")
    ui: str | None = Field(None, description="address of Kubeflow's pages, if another")


class WatchSettings(Settings):
    """One model's triggers. Paths are relative to the settings' file."""

    called: ClassVar[str] = "watch settings"

    run: Path = Field(description="settings of the run that triggers start (YAML)")
    overrides: tuple[str, ...] = Field((), description="as --set of `linnet run`")
    dataset: bool = Field(True, description="run when pictures of the source came, went or changed")
    annotations: bool = Field(True, description="run when only the source's CSV of labels changed")
    on_drift: bool = Field(True, description="run once for each champion that drift is found of")
    registry: tuple[str, ...] = Field(
        ("retrain",), description="run when a release gets one of these aliases in the registry"
    )
    every_s: Rate | None = Field(
        None, description="run in each such time, seconds, counted from 1970 in UTC; null: never"
    )
    at_least_s: Annotated[float, Field(ge=0.0)] = Field(
        3600.0, description="least time between two runs that triggers start, seconds"
    )
    poll_s: Rate = Field(60.0, description="time between two looks at source and registry, seconds")
    drift: DriftWatchSettings | None = Field(
        None, description="look for drift here; null: heed the looks of others in the registry"
    )
    cluster: ClusterSettings | None = Field(None, description="null: run on this machine")
    metrics_port: Annotated[int, Field(ge=1, le=65535)] | None = Field(
        None, description="port of /metrics: drift of the champion, the last run; null: none"
    )

    @field_validator("registry")
    @classmethod
    def _no_circle(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        if moved := {"champion", "candidate"} & set(aliases):
            raise ValueError(
                f"{', '.join(sorted(moved))} is moved by runs themselves, so each run would start "
                "the next: take another alias, such as retrain"
            )
        return aliases
