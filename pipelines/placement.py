"""Where tasks run and what they may use: one helper per need, each returns its task.

LINNET_OVERLAY is read when a pipeline is compiled and says for which cluster: `kind` has no GPU,
`gpu-cluster` trains on one. Requests are small, so that a laptop's cluster holds every step; what
names no limit has the namespace's. `linnet run` heeds nothing of this but caching.
"""

import os

from kfp import dsl, kubernetes

OVERLAYS = ("kind", "gpu-cluster")
OVERLAY = os.environ.get("LINNET_OVERLAY", OVERLAYS[0])
if OVERLAY not in OVERLAYS:
    raise ValueError(f"LINNET_OVERLAY is {OVERLAY!r}: expected one of {', '.join(OVERLAYS)}")

# Where every step has its scratch space; training's is a volume that outlives its pod.
WORKSPACE = "/tmp/linnet"
WORKSPACE_CLAIM = "linnet-workspace"

CREDENTIALS = "linnet-s3"
CONNECTIONS = "linnet-connections"
SEARCH = "linnet-search"
SEARCH_KEYS = ("LINNET_SEARCH_STORAGE",)
SIGNING = "linnet-signing"
SIGNING_KEYS = ("LINNET_SIGNING_KEY", "LINNET_SIGNING_PASSWORD")
CREDENTIAL_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# Kubeflow's MLflow plugin sets MLFLOW_TRACKING_URI itself, and a pod that has it twice is refused.
NEEDED_CONNECTIONS = {
    "MLFLOW_TRACKING_URI": "LINNET_TRACKING_URI",
    "LINNET_RELEASE_ROOT": "LINNET_RELEASE_ROOT",
}
OPTIONAL_CONNECTIONS = ("AWS_ENDPOINT_URL", "AWS_REGION", "LINNET_TRUSTED_KEY")

GPU = "nvidia.com/gpu"
# The label that NVIDIA's GPU feature discovery gives to nodes.
GPU_NODES = ("nvidia.com/gpu.present", "true")


def light(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Ask for little: one process that holds a graph and a batch of pictures."""
    return _connected(task.set_cpu_request("100m").set_memory_request("512Mi"))


def decoding(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Ask for memory to decode pictures on every CPU that the node has to spare."""
    return _connected(task.set_cpu_request("250m").set_memory_request("1Gi"))


def training(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Ask for a GPU where there are any, and go on from the last epoch in a pod's place."""
    task.set_retry(num_retries=3, backoff_duration="30s", backoff_factor=2.0)
    kubernetes.mount_pvc(task, WORKSPACE_CLAIM, WORKSPACE)
    if OVERLAY == "gpu-cluster":
        _on_gpu(task)
    else:
        task.set_cpu_request("250m").set_memory_request("2Gi")
    return _connected(task)


def answering(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Decode, and go on after the last whole part in a pod's place.

    Not cached: which release answers depends on the registry.
    """
    task.set_retry(num_retries=3, backoff_duration="30s", backoff_factor=2.0)
    return decoding(task).set_caching_options(enable_caching=False)


def searching(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Train as `training` does, and share trials in a database; they are no input, so no cache.

    Without the Secret that names a database, workers share a file in the workspace.
    """
    kubernetes.use_secret_as_env(task, SEARCH, _same(SEARCH_KEYS), optional=True)
    return training(task).set_caching_options(enable_caching=False)


def deciding(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Ask for little, and run every time: the answer depends on the registry or the cluster."""
    return light(task).set_caching_options(enable_caching=False)


def releasing(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Decide as `deciding` does, and sign where there is a Secret with a key to sign with."""
    kubernetes.use_secret_as_env(task, SIGNING, _same(SIGNING_KEYS), optional=True)
    return deciding(task)


def _on_gpu(task: dsl.PipelineTask) -> None:
    """Take one GPU for the one process, on a node that is kept for such tasks."""
    task.set_cpu_request("2").set_cpu_limit("8").set_memory_request("8Gi").set_memory_limit("32Gi")
    task.set_accelerator_type(GPU).set_accelerator_limit(1)
    kubernetes.add_node_selector(task, *GPU_NODES)
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    # Loader processes hand over batches in shared memory, of which a pod has 64 MiB otherwise.
    kubernetes.empty_dir_mount(task, "shared-memory", "/dev/shm", medium="Memory", size_limit="4Gi")


def _connected(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Tell the task where MLflow and S3 are; run the very image, as a user that is not root.

    The Secret may be absent where S3 takes the pod's own role, S3's address where it is AWS, and
    the trusted key where releases aren't signed.
    Kubeflow itself drops capabilities, forbids privilege escalation and sets the seccomp profile.
    """
    kubernetes.use_secret_as_env(task, CREDENTIALS, _same(CREDENTIAL_KEYS), optional=True)
    kubernetes.use_config_map_as_env(task, CONNECTIONS, NEEDED_CONNECTIONS)
    kubernetes.use_config_map_as_env(task, CONNECTIONS, _same(OPTIONAL_CONNECTIONS), optional=True)
    kubernetes.set_security_context(task, run_as_non_root=True)
    return kubernetes.set_image_pull_policy(task, "IfNotPresent")


def _same(names: tuple[str, ...]) -> dict[str, str]:
    """Return the mapping by which a key becomes the variable of its name."""
    return {name: name for name in names}
