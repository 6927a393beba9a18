"""Answers of a release for any number of pictures, shared out over pods."""

from kfp import dsl

from components.batch.component import batch
from components.summarise.component import summarise
from pipelines import placement
from pipelines.settings import DEFAULTS


@dsl.pipeline(name="batch-predict", description=__doc__)
def batch_predict(
    release: str,
    output: str,
    source: dict = DEFAULTS["source"],
    shards: list = ["1/1"],  # noqa: B006
    settings: dict = {},  # noqa: B006
    workspace: str = placement.WORKSPACE,
) -> None:
    """Answer each shard in a pod of its own, such as 1/4, 2/4, 3/4 and 4/4, and sum up."""
    to = {"output": output, "workspace": workspace}
    with dsl.ParallelFor(shards, name="shards") as shard:
        on = {"source": source, "release": release, "settings": settings}
        answered = placement.answering(batch(**on, **to, shard=shard))
    summed_up = summarise(**to, shards=dsl.Collected(answered.output))
    placement.deciding(summed_up)
