"""A process of its own that fires one trigger as soon as a file appears, and prints the outcome.

python -m tests.triggers.firing SETTINGS WORKSPACE KEY GO
"""

import json
import sys
import time
from pathlib import Path

from linnet.stores.connections import Connections
from linnet.triggers.ledger import Trigger
from linnet.triggers.settings import WatchSettings
from linnet.triggers.starting import Starter

if __name__ == "__main__":
    settings, workspace, key, go = sys.argv[1:]
    starter = Starter(
        WatchSettings.load(Path(settings)),
        Path(settings).parent,
        Connections.from_environment(Path(workspace)),
        workspace=Path(workspace),
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not Path(go).exists():
        time.sleep(0.002)
    fired = starter.fire(Trigger("shades", "dataset", key, f"process {key}", "new pictures"))
    sys.stdout.write(json.dumps({"outcome": fired.outcome, "number": fired.number}) + "\n")
