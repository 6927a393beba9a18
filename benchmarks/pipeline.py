"""What the pipeline costs: `linnet run` against the same library calls in one plain script.

    python -m benchmarks.pipeline [PAIRS]

Both are whole processes on the built-in digits, run in turn; the ratio is of each pair.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGET = 1.25
SCRIPT = """
import sys
from pathlib import Path
from linnet.data.ingest import ingest
from linnet.evaluation.evaluate import evaluate
from linnet.evaluation.gate import gate
from linnet.evaluation.report import Report
from linnet.launch import packaged_settings
from linnet.release.bundle import open_champion, release
from linnet.release.export import export
from linnet.settings import RunSettings
from linnet.stores.connections import Connections
from linnet.stores.tracking import Tracker, log_report
from linnet.training import fit

workspace = Path(sys.argv[1])
settings = RunSettings.load(packaged_settings())
connections = Connections.from_environment(workspace)
out = workspace / "out"
ingest(settings.source, out / "dataset", settings.ingest, connections=connections)
with Tracker.start(connections, experiment=settings.model) as tracker:
    fit(out / "dataset", out / "checkpoint", settings.train, workspace=workspace,
        tracker=tracker, connections=connections)
export(out / "checkpoint", out / "dataset", out / "graph", settings.export)
evaluate(out / "graph", out / "dataset", out / "report", settings.evaluate,
         model=settings.model)
with open_champion(settings.model, connections) as champion:
    decision = gate(out / "graph", out / "dataset", out / "report", out / "gated", settings.gate,
                    champion=champion)
log_report(connections, Report.load(out / "gated"), out / "gated/report.html")
assert decision.decision == "release"
release(out / "graph", out / "gated", out / "dataset", model=settings.model,
        settings=settings.release, connections=connections)
"""


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def pair(folder: Path) -> tuple[float, float]:
    linnet = Path(sys.executable).with_name("linnet")
    pipeline = seconds([str(linnet), "run", "--workspace", str(folder / "pipeline")])
    plain = seconds([sys.executable, "-c", SCRIPT, str(folder / "plain")])
    return pipeline, plain


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    ratios = []
    for number in range(1, pairs + 1):
        with tempfile.TemporaryDirectory() as folder:
            pipeline, plain = pair(Path(folder))
        ratios.append(pipeline / plain)
        print(f"pair {number}: pipeline {pipeline:.1f} s, plain script {plain:.1f} s")
    median = statistics.median(ratios)
    verdict = "met" if median <= TARGET else "missed"
    print(f"pipeline / plain script: {median:.2f} ({verdict}, target ≤ {TARGET})")


if __name__ == "__main__":
    main()
