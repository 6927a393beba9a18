"""The conclude step: the last one, which runs however the others ended."""

from kfp import dsl

from components.step import step


@step("cpu")
def conclude(status: dsl.PipelineTaskFinalStatus, model: str, workspace: str) -> str:
    """Say how the run ended, in the log and in MLflow."""
    from pathlib import Path

    from linnet.stores.connections import Connections
    from linnet.stores.outcome import record_outcome

    return record_outcome(
        model,
        Connections.from_environment(Path(workspace)),
        state=status.state,
        run=status.pipeline_job_resource_name,
        error=status.error_message,
    )
