"""Plain FastAPI: a thread pool in one process, or a process a core (WORKERS)."""

import base64
import os
from asyncio import get_running_loop
from concurrent.futures import ThreadPoolExecutor

import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.model import Classifier

WORKERS = int(os.environ.get("WORKERS", "1"))
THREADS = 1 if WORKERS > 1 else os.cpu_count() or 1

app = FastAPI()
classifier = Classifier(THREADS)
pool = ThreadPoolExecutor(THREADS)


async def _answer(work, *inputs) -> Response:
    probabilities = await get_running_loop().run_in_executor(pool, work, *inputs)
    return Response(probabilities.tobytes(), media_type="application/octet-stream")


@app.post("/uint8")
async def uint8(request: Request) -> Response:
    return await _answer(classifier.raw, await request.body())


@app.post("/encoded")
async def encoded(request: Request) -> Response:
    return await _answer(classifier.encoded, await request.body())


@app.post("/base64")
async def in_json(request: Request) -> Response:
    body = await request.json()
    return await _answer(classifier.encoded, base64.b64decode(body["picture"]))


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.peers.fastapi_app:app",
        port=int(os.environ["REST_PORT"]),
        workers=WORKERS,
        log_level="warning",
        access_log=False,
        timeout_worker_healthcheck=60,
    )
