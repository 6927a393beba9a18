"""Recurring runs of Kubeflow Pipelines that end with a test."""

import contextlib
from collections.abc import Callable, Iterator

import urllib3


@contextlib.contextmanager
def stopped_at_the_end(kubeflow: str, recurring: str) -> Iterator[Callable[[], dict[str, str]]]:
    """Yield what tells the states of a recurring run's runs; then delete it and stop them."""
    api = f"{kubeflow}/apis/v2beta1"
    try:
        yield lambda: _states(api, recurring)
    finally:
        urllib3.request("DELETE", f"{api}/recurringruns/{recurring}", retries=False, timeout=60)
        for one, state in _states(api, recurring).items():
            if state in ("PENDING", "RUNNING"):
                urllib3.request("POST", f"{api}/runs/{one}:terminate", retries=False, timeout=60)


def is_again(states: dict[str, str]) -> bool:
    """Whether one run came to its end and another began."""
    assert "FAILED" not in states.values(), states
    return "SUCCEEDED" in states.values() and len(states) > 1


def _states(api: str, recurring: str) -> dict[str, str]:
    query = "sort_by=created_at%20desc&page_size=50"
    answer = urllib3.request("GET", f"{api}/runs?{query}", retries=False, timeout=60)
    return {
        one["run_id"]: one.get("state", "PENDING")
        for one in answer.json().get("runs", [])
        if one.get("recurring_run_id") == recurring
    }
