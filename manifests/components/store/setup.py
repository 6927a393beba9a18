"""Make MinIO's bucket and its users, in a Job of the cluster.

What is there already stays; passwords and rights are set anew.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import urllib3
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioException

BUCKET = "linnet"
READ = ("s3:GetObject",)
WRITE = (
    "s3:GetObject",
    "s3:PutObject",
    "s3:DeleteObject",
    "s3:AbortMultipartUpload",
    "s3:ListMultipartUploadParts",
)


def main() -> int:
    """Make everything, waiting a minute for MinIO to answer."""
    endpoint, user, password = (
        os.environ[name] for name in ("ENDPOINT", "ROOT_USER", "ROOT_PASSWORD")
    )
    # What a MinIO that restarts leaves unanswered is asked again after this time.
    patience = urllib3.PoolManager(timeout=10, retries=False)
    client = Minio(
        endpoint=endpoint,
        access_key=user,
        secret_key=password,
        secure=False,
        http_client=patience,
    )
    admin = MinioAdmin(endpoint=endpoint, credentials=StaticProvider(user, password), secure=False)
    make_bucket(client)
    add_user(admin, "linnet-pipelines", os.environ["PIPELINES_PASSWORD"], rights({"": WRITE}))
    # A model's server reads its release, and keeps a sample of what it was asked.
    models = rights({"releases/": READ, "log/": WRITE})
    add_user(admin, "linnet-models", os.environ["MODELS_PASSWORD"], models)
    add_user(admin, "linnet-mlflow", os.environ["MLFLOW_PASSWORD"], rights({"mlflow/": WRITE}))
    # Argo Events is told what comes and goes, and reads nothing.
    add_user(admin, "linnet-events", os.environ["EVENTS_PASSWORD"], listening())
    return 0


def make_bucket(client: Minio) -> None:
    """Make the bucket if it is absent, trying again while MinIO does not answer."""
    deadline = time.monotonic() + 60
    while True:
        try:
            if not client.bucket_exists(bucket_name=BUCKET):
                client.make_bucket(bucket_name=BUCKET)
            return
        except (MinioException, urllib3.exceptions.HTTPError) as error:
            if time.monotonic() > deadline:
                raise
            sys.stderr.write(f"waiting for MinIO: {error}\n")
            time.sleep(2)


def rights(actions: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return the policy that allows actions on what lies below prefixes, and to list it all."""
    bucket = f"arn:aws:s3:::{BUCKET}"
    listing: dict[str, Any] = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket", "s3:GetBucketLocation", "s3:ListBucketMultipartUploads"],
        "Resource": [bucket],
    }
    objects = [
        {"Effect": "Allow", "Action": [*allowed], "Resource": [f"{bucket}/{prefix}*"]}
        for prefix, allowed in actions.items()
    ]
    return {"Version": "2012-10-17", "Statement": [listing, *objects]}


def listening() -> dict[str, Any]:
    """Return the policy that allows to hear of what comes to the bucket and goes."""
    actions = ["s3:ListenBucketNotification", "s3:GetBucketLocation"]
    allowed = {"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{BUCKET}"]}
    return {"Version": "2012-10-17", "Statement": [allowed]}


def add_user(admin: MinioAdmin, name: str, password: str, policy: dict[str, Any]) -> None:
    """Make a user of this name and password who may do what the policy says."""
    admin.policy_add(name, policy=policy)
    admin.user_add(name, password)
    admin.policy_set(name, user=name)
    sys.stdout.write(f"user {name}\n")


if __name__ == "__main__":
    sys.exit(main())
