"""Every error that Linnet raises on purpose.

A message names the value, what was expected, and the next move. The `linnet` command prints it
without a traceback and exits with the class's `exit_code`; anything else that escapes is a bug.
"""


class LinnetError(Exception):
    """Root of the tree: something that the person running Linnet can put right."""

    exit_code = 1


class SettingsError(LinnetError):
    """A setting is misspelt, out of its bounds, or contradicts another one."""

    exit_code = 2


class SourceError(LinnetError):
    """The labelled pictures can't be found, read, or made into a dataset."""


class PictureError(LinnetError):
    """One picture can't be used. `reason` is a short stable word for tables and quarantine."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class DatasetError(LinnetError):
    """A dataset folder is absent, half written, or not what the step needs."""


class NetworkError(LinnetError):
    """A network or its pretrained weights can't be had or don't fit together."""


class TrainingError(LinnetError):
    """Training can't start or can't go on, for example because the loss is not a number."""


class DivergedError(TrainingError):
    """The loss is no longer a number."""


class SearchError(LinnetError):
    """A search can't go on, or found nothing."""


class CheckpointError(LinnetError):
    """A checkpoint is absent, half written, or of another network or dataset."""


class GraphError(LinnetError):
    """An ONNX graph is absent, damaged, or does not agree with the checkpoint it came from."""


class EvaluationError(LinnetError):
    """A report can't be made from these predictions, or can't be read."""


class BatchError(LinnetError):
    """A batch's output is of something else, or none of its pictures can be answered."""


class ReleaseError(LinnetError):
    """A release is absent, half written, or does not match its digests."""


class ReleaseExistsError(ReleaseError):
    """The version asked for is already released; releases are immutable."""


class StoreError(LinnetError):
    """An object store or folder refused an operation."""


class StoreUnreachableError(StoreError):
    """The store did not answer after the retries."""


class StoreDeniedError(StoreError):
    """The store answered, and refused the credentials or the operation."""


class StoreAbsentError(StoreError):
    """The object, file or bucket asked for is not there."""


class StoreFullError(StoreError):
    """No space is left where something had to be written."""


class TrackingError(LinnetError):
    """MLflow can't be reached or refused an operation."""


class ServerError(LinnetError):
    """A model server failed, or answered what was not expected."""


class ServerUnreachableError(ServerError):
    """The model server did not answer in time, or is not there."""


class ServerBusyError(ServerError):
    """The model server had no room for the request in every try."""


class RequestRefusedError(ServerError):
    """The model server says what is wrong with the request; `said` has its own words, if any."""

    def __init__(self, message: str, *, said: str = "") -> None:
        super().__init__(message)
        self.said = said


class GateRefusedError(LinnetError):
    """The gate refused the model: nothing went wrong, and nothing was released."""

    exit_code = 3


class RunFailedError(LinnetError):
    """A step of the pipeline failed; the message carries the step's own error."""


class KubeflowError(LinnetError):
    """Kubeflow Pipelines refused a request."""


class KubeflowUnreachableError(KubeflowError):
    """Kubeflow Pipelines did not answer as long as it was tried."""


class KubeflowDeniedError(KubeflowError):
    """Kubeflow Pipelines does not accept who asks."""


class RequestError(LinnetError):
    """A request to the server can't be answered; `status` is HTTP's, `retry_after_s` a hint."""

    def __init__(
        self, message: str, *, status: int = 400, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ServeError(LinnetError):
    """The server can't start, for example because its port is taken."""


class ClusterError(LinnetError):
    """The Kubernetes API refused an operation."""


class ClusterUnreachableError(ClusterError):
    """The Kubernetes API did not answer as long as it was tried."""


class ClusterForbiddenError(ClusterError):
    """The Kubernetes API refuses who asks: the message says which verb on what."""


class ClusterAbsentError(ClusterError):
    """The object asked for is not in the cluster."""


class ClusterConflictError(ClusterError):
    """Another one changed or made the object in the meantime."""


class RolloutError(LinnetError):
    """A rollout can't start or go on; traffic is where the message says."""


class RolloutBusyError(RolloutError):
    """Another process is rolling out the same model."""


class RolloutAbortedError(RolloutError):
    """The candidate was taken back: nothing went wrong, and the champion has all the traffic."""

    exit_code = 3


class EvidenceError(RolloutError):
    """What the servers counted can't be had, so nothing may be concluded and nothing advances."""


class ApprovalError(LinnetError):
    """A person has not approved the release: nothing went wrong, and no traffic moves."""

    exit_code = 3


class DriftError(LinnetError):
    """Pictures can't be compared with those that a release was measured on."""


class FeedbackError(LinnetError):
    """True labels can't be read, or belong to no answer that was logged."""


class TriggerError(LinnetError):
    """A trigger can't be noted, or what it should start can't be started."""


class AnnotationError(LinnetError):
    """Label Studio refused a request, or its project is not what was expected."""


class AnnotationUnreachableError(AnnotationError):
    """Label Studio did not answer as long as it was tried."""


class AnnotationDeniedError(AnnotationError):
    """Label Studio does not accept who asks."""


class AnnotationAbsentError(AnnotationError):
    """The project or picture asked for is not in Label Studio."""
