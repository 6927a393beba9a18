"""How a rollout goes: its steps, how long each takes at least, and what is too much worse."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from linnet.settings import Count, Fraction, Settings

Seconds = Annotated[float, Field(gt=0.0, le=7 * 86_400.0)]


class AnalysisSettings(Settings):
    """What the candidate must show at each weight, and what ends the rollout."""

    hold_s: Annotated[float, Field(ge=0.0, le=7 * 86_400.0)] = Field(
        60.0, description="least time at each weight, seconds"
    )
    poll_s: Seconds = Field(10.0, description="time between two looks at the evidence, seconds")
    min_requests: Count = Field(
        200, description="requests that candidate and champion each must have had at a weight"
    )
    false_abort: float = Field(
        0.01,
        gt=0.0,
        lt=0.5,
        description="chance that a candidate within all margins is aborted by its counters and "
        "answers, over the whole rollout, however often one looks",
    )
    error_margin: Fraction = Field(
        0.005, description="the candidate's share of errors may be the champion's plus this"
    )
    max_error_rate: Fraction = Field(
        0.05,
        description="with more errors the candidate never advances, however many the champion has; "
        "alone at 100 % it is aborted only for more than this",
    )
    refused_margin: Fraction = Field(
        0.05, description="the same for requests declined: 429 when full, and other 4xx"
    )
    p50_factor: float = Field(
        1.5, ge=1.0, description="the candidate's median time may be the champion's times this"
    )
    p99_factor: float = Field(2.0, ge=1.0, description="the same for the 99th percentile")
    latency_floor_s: float = Field(
        0.01, ge=0.0, description="and always this much longer than the champion's, seconds"
    )
    max_restarts: int = Field(
        1, ge=0, description="restarts of a candidate's pods at a weight, beyond the champion's"
    )
    max_class_shift: Fraction = Field(
        0.15, description="a class may gain or lose this share of the predictions; 1: any"
    )
    max_confidence_shift: Fraction = Field(
        0.25, description="this share of the predictions may become less confident; 1: any"
    )
    min_agreement: Fraction = Field(
        0.7, description="share of replayed pictures, if unlabelled, to be named the same; 0: any"
    )
    max_accuracy_loss: Fraction = Field(
        0.02,
        description="share of replayed labelled pictures that may become wrong, net, and of those "
        "whose true labels come back; 1: any",
    )


class RolloutSettings(Settings):
    """One rollout of a candidate beside the champion."""

    called: ClassVar[str] = "rollout settings"

    namespace: str = Field("linnet-serving", description="where the InferenceService is")
    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        (10, 25, 50, 100), description="percent of the traffic, one step after the other, up to 100"
    )
    dark: bool = Field(
        True, description="first start the candidate at 0 % and ask it the release's own pictures"
    )
    replicas: Count = Field(
        1,
        description="least pods of the candidate; with its weight they grow to the champion's "
        "number, as the champion's own become fewer",
    )
    prometheus: str | None = Field(
        None,
        pattern=r"^https?://",
        description="address of Prometheus; null: the pods' own /metrics are read",
    )
    ready_timeout_s: Seconds = Field(
        600.0, description="longest wait until the candidate's pods are ready, seconds"
    )
    settle_timeout_s: Seconds = Field(
        180.0, description="longest wait until a weight or a number of pods has come true, seconds"
    )
    settle_s: Annotated[float, Field(ge=0.0, le=600.0)] = Field(
        3.0, description="pause after a route has changed, for the gateway to act on it, seconds"
    )
    api_timeout_s: Seconds = Field(
        300.0, description="longest time that the Kubernetes API may be away, seconds"
    )
    timeout_s: Seconds = Field(
        6 * 3600.0, description="longest time for the whole rollout, seconds"
    )
    on_timeout: Literal["hold", "abort"] = Field(
        "abort", description="what happens then: the weight stays for a person to decide, or abort"
    )
    analysis: AnalysisSettings = AnalysisSettings()
    traffic: Literal["canary", "route"] = Field(
        "canary",
        description="canary: KServe's spec.canary (0.21 or newer); route: an HTTPRoute of ours "
        "over two InferenceServices, for an older KServe and for shadow traffic",
    )
    mirror_percent: Annotated[int, Field(ge=0, le=100)] = Field(
        0,
        description="with traffic: route, percent of the requests that a dark candidate gets as "
        "well; its answers go nowhere",
    )
    host: str | None = Field(
        None, description="with traffic: route, the host name; null: MODEL-NAMESPACE.example.com"
    )
    kserve_namespace: str = Field("kserve", description="where KServe's controller is")
    runtime: str = Field("linnet", description="ServingRuntime of a model's first release")
    service_account: str = Field(
        "linnet-models",
        description="ServiceAccount of a first release's pods, with the store's key",
    )
    first_replicas: Count = Field(1, description="pods of a model's first release")

    @field_validator("steps")
    @classmethod
    def _ascending_to_100(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or steps[-1] != 100 or list(steps) != sorted(set(steps)):
            raise ValueError("steps must ascend and end with 100, such as [10, 25, 50, 100]")
        return steps
