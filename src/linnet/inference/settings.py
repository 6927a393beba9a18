"""How the server listens, batches, limits and stops."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr

from linnet.data.pictures import MAX_PIXELS
from linnet.settings import Count, Fraction, Rate, Settings

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0.0, le=86_400.0)]


class PredictionLogSettings(Settings):
    """What is kept of requests and answers; by default nothing."""

    to: str | None = Field(
        None, description="folder or s3://bucket/prefix of the prediction log; null: none is kept"
    )
    share: Fraction = Field(0.1, description="share of the requests that is logged")
    pictures: Literal["original", "thumbnail", "none"] = Field(
        "original",
        description="what is kept of pictures: files as they were sent, small JPEGs, or nothing",
    )
    thumbnail_px: Annotated[int, Field(ge=16, le=512)] = Field(
        96, description="longer side of a thumbnail, pixels"
    )
    per_second: Rate = Field(5.0, description="most requests logged in a second")
    bytes_per_hour: Annotated[int, Field(ge=1 << 10)] = Field(
        256 << 20, description="most bytes that this server writes in an hour"
    )
    memory_bytes: Annotated[int, Field(ge=1 << 10)] = Field(
        16 << 20, description="most bytes that wait in memory, also while the store is down"
    )
    part_bytes: Annotated[int, Field(ge=1 << 10)] = Field(
        4 << 20, description="a part is written when so many bytes wait"
    )
    part_s: Seconds = Field(60.0, description="and at the latest after so many seconds")
    least_free_bytes: Annotated[int, Field(ge=0)] = Field(
        1 << 30, description="of a folder: with less free space nothing is written"
    )
    keep_days: Annotated[int, Field(ge=1)] | None = Field(
        30, description="days after which the server deletes what was logged; null: never"
    )


class ServeSettings(Settings):
    """Everything the server can be told; the defaults suit one machine and a container alike."""

    called: ClassVar[str] = "server settings"

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every interface")
    rest_port: Port = Field(8080, description="port of REST; 0: any free one")
    grpc_port: Port = Field(8081, description="port of gRPC; 0: any free one")

    workers: Count | None = Field(
        None, description="threads that run the model; null: one per available CPU"
    )
    decode_threads: Count | None = Field(
        None, description="threads that decode and resize; null: one per available CPU"
    )
    max_batch: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        "auto",
        description="most pictures in one run of the model; auto: what costs the least CPU, "
        "measured while the model is loaded",
    )
    max_wait_ms: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        0.0,
        description="longest wait for more pictures while some are being decoded, milliseconds; "
        "a picture that is alone never waits",
    )

    queue_wait_ms: Annotated[float, Field(gt=0.0, le=600_000.0)] = Field(
        100.0,
        description="longest wait for an answer under overload, milliseconds: beyond the pictures "
        "that are answered in it (measured; at least 16 per worker) requests are refused with 429",
    )
    queue_pictures: Count = Field(
        256, description="most pictures accepted and not yet answered, per model, whatever the wait"
    )
    pictures_per_request: Count = Field(64, description="most pictures in one request")
    max_body_bytes: Annotated[int, Field(ge=1024, le=2**31 - 1)] = Field(
        32 << 20, description="largest body of a request, bytes"
    )
    max_pixels: Count = Field(
        min(25_000_000, MAX_PIXELS), description="largest picture, width × height"
    )
    bodies_bytes: Annotated[int, Field(ge=1024)] = Field(
        256 << 20,
        description="all requests being received or answered together, bytes; at most a quarter "
        "of the memory that is left once the models are loaded",
    )
    max_connections: Count = Field(1024, description="open REST connections")
    request_timeout_s: Seconds = Field(30.0, description="longest time to answer, seconds")
    head_timeout_s: Seconds = Field(10.0, description="longest time to send a request's head")
    body_timeout_s: Seconds = Field(30.0, description="longest time to send a request's body")
    idle_timeout_s: Seconds = Field(75.0, description="idle connections are closed after this")

    drain_wait_s: Annotated[float, Field(ge=0.0, le=600.0)] = Field(
        0.0,
        description="after SIGTERM: keep accepting this long while readiness is off, so that "
        "balancers can look elsewhere, seconds",
    )
    drain_timeout_s: Seconds = Field(
        30.0, description="after that: longest time to finish accepted requests, seconds"
    )

    token: SecretStr | None = Field(
        None, description="bearer token or API key that requests must carry; null: none"
    )
    repository_api: bool = Field(
        False, description="allow loading and unloading models through the API"
    )
    fetch_hosts: tuple[str, ...] = Field(
        (),
        description="hosts that {url: …} may name, such as images.example.org or "
        ".example.org for all below; empty: URLs are refused",
    )
    fetch_private: bool = Field(
        False, description="let those hosts be plain http and private addresses"
    )
    fetch_timeout_s: Seconds = Field(5.0, description="longest time to fetch a URL, seconds")

    warm_up_tolerance: float = Field(
        1e-3, gt=0.0, description="largest difference from a sample's recorded probabilities"
    )
    prediction_log: PredictionLogSettings = PredictionLogSettings()
    feedback: bool = Field(
        False, description="take true labels at /feedback/<model> and count what was right"
    )
    feedback_requests: Count = Field(
        20_000, description="answers that this server remembers, to hold true labels against"
    )

    access_log: Literal["all", "errors", "none"] = Field(
        "all", description="requests that get a line in the log"
    )
