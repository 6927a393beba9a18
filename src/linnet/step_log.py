"""What a pipeline's step says itself, told apart from what Kubeflow prints around it."""

import re

_SAID = re.compile(r"\s*\[KFP Executor [^\]]*\]: (.*)")
_EXECUTOR_ITSELF = ("Looking for component", "Loading KFP component", "Wrote executor output file")
_INPUT_BEGINS, _INPUT_ENDS = "Got executor_input:", "}"
# The launcher's and Argo's own: I1121 06:00:00.000000 …, time="2026-11-21T06:00:00" level=…
_AROUND = re.compile(r"[IWEF]\d{4} \d\d:\d\d|time=|Error: exit status ")
_RAISED = re.compile(r"\s*(?:[a-z_]\w*\.)*\w*(?:Error|Exception): (.*)")


class StepLog:
    """One step's log, line by line; `lines` are those that no logger wrote, as a traceback's."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._in_input = False

    def hear(self, line: str) -> str | None:
        """Take in the next line; return the text when the step logged it itself."""
        if self._in_input:
            self._in_input = line.rstrip() != _INPUT_ENDS
            return None
        found = _SAID.match(line)
        if found is None:
            if line.strip() and not _AROUND.match(line):
                self.lines.append(line.rstrip())
            return None
        if found[1].startswith(_INPUT_BEGINS):
            self._in_input = True
            return None
        return None if found[1].startswith(_EXECUTOR_ITSELF) else found[1]

    def own_words(self) -> str:
        """Return the message that the step's traceback ends with, without the error's name."""
        for number in range(len(self.lines) - 1, -1, -1):
            if found := _RAISED.match(self.lines[number]):
                return "\n".join([found[1], *self.lines[number + 1 :]])
        return ""
