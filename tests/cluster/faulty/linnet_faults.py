"""Faults for a server under test: imported when Python starts, by the release's version.

A version that ends with `-errors` answers half its requests with 500, `-slow` takes ten times as
long as the others do, `-wrong` names another class with status 200. Others are left alone.
"""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

MANIFEST = Path("/mnt/models/release.json")
SLOW_S = 0.3


def _fault() -> str:
    if not MANIFEST.is_file():
        return ""
    return str(json.loads(MANIFEST.read_text())["version"]).rpartition("-")[2]


def _spoil(fault: str) -> None:
    from linnet.inference import answers, rest

    infer, answer = rest.Rest._infer, answers.Rule.answer

    async def failing(self: Any, *arguments: Any) -> Any:
        if random.random() < 0.5:
            raise RuntimeError("a fault under test")
        return await infer(self, *arguments)

    async def late(self: Any, *arguments: Any) -> Any:
        await asyncio.sleep(SLOW_S)
        return await infer(self, *arguments)

    def wrong(self: Any, probabilities: Any) -> Any:
        return answer(self, probabilities[:, [-1, *range(probabilities.shape[1] - 1)]])

    if fault == "errors":
        rest.Rest._infer = failing  # type: ignore[method-assign]
    elif fault == "slow":
        rest.Rest._infer = late  # type: ignore[method-assign]
    elif fault == "wrong":
        answers.Rule.answer = wrong  # type: ignore[method-assign]


_FAULT = _fault()
if _FAULT in ("errors", "slow", "wrong"):
    _spoil(_FAULT)
