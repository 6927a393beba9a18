"""Where tasks run and what they may use: one helper per need.

Requests are small, so that a laptop's cluster holds every step; limits are left to the namespace.
"""

from kfp import dsl


def all_cpus(task: dsl.PipelineTask) -> None:
    """Ask for memory to decode pictures on every CPU of the node."""
    task.set_cpu_request("500m").set_memory_request("1Gi")


def training(task: dsl.PipelineTask) -> None:
    """Ask for memory to hold a network and its batches; a killed task is tried again."""
    task.set_cpu_request("1").set_memory_request("2Gi")
    task.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0)


def never_cached(task: dsl.PipelineTask) -> None:
    """Run the task every time: its answer depends on the registry, which is not an input."""
    task.set_caching_options(enable_caching=False)
