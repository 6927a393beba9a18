"""What a rollout does, decided from what was seen of champion and candidate."""

import math
from dataclasses import replace

import pytest

from benchmarks.rollout_errors import BAD, GOOD, run
from linnet.errors import SettingsError
from linnet.rollout.judge import Check, Judgement, judge, needed_evidence
from linnet.rollout.seen import Answered, Histogram, Replayed, Seen
from linnet.rollout.settings import RolloutSettings

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, math.inf)
SETTINGS = RolloutSettings()


def histogram(*values: float, of: int = 1, bounds: tuple[float, ...] = BOUNDS) -> Histogram:
    return Histogram(
        {bound: sum(value <= bound for value in values) * of // len(values) for bound in bounds}
    )


def side(requests: int = 2000, *, errors: int = 0, refused: int = 0, **changed: object) -> Answered:
    usual = Answered(
        requests=requests,
        errors=errors,
        refused=refused,
        seconds=histogram(0.02, of=requests),
        labels={"cat": requests // 2, "dog": requests - requests // 2},
        confidence=histogram(0.9, of=requests, bounds=(0.5, 0.8, 0.95, 1.0, math.inf)),
        ready_pods=2,
        pods=2,
    )
    return replace(usual, **changed)


def seen(candidate: Answered, champion: Answered | None = None, **changed: object) -> Seen:
    usual = Seen(champion or side(), candidate, seconds=90.0, total_seconds=500.0)
    return replace(usual, **changed)


def check(judgement: Judgement, name: str) -> Check:
    (found,) = [each for each in judgement.checks if each.name == name]
    return found


def decided(weight: int, what: Seen, **analysis: object) -> Judgement:
    return judge(weight, what, RolloutSettings.parse({"analysis": analysis}))


@pytest.mark.parametrize(
    ("weight", "verdict", "following"),
    [
        (0, "advance", 10),
        (10, "advance", 25),
        (30, "advance", 50),
        (50, "advance", 100),
        (100, "done", 100),
    ],
)
def test_a_good_candidate_goes_from_step_to_step(weight: int, verdict: str, following: int) -> None:
    judgement = judge(weight, seen(side(300)), SETTINGS)
    assert (judgement.verdict, judgement.weight) == (verdict, following)
    assert {each.verdict for each in judgement.checks} == {"advance"}


def test_a_bad_candidate_is_aborted_with_the_numbers_in_words() -> None:
    judgement = judge(10, seen(side(210, errors=22), side(1890, errors=3)), SETTINGS)
    assert (judgement.verdict, judgement.weight) == ("abort", 0)
    assert judgement.reason.startswith(
        "errors: 22 of 210 (10.48%) at the candidate, 3 of 1,890 (0.16%) at the champion: worse, "
        "e-value "
    )
    assert judgement.reason.endswith(" of 4,000")


def test_what_aborts_does_so_before_the_time_and_the_requests_are_there() -> None:
    judgement = judge(10, seen(side(30, errors=20), side(300), seconds=5.0), SETTINGS)
    assert judgement.verdict == "abort"
    assert check(judgement, "traffic").verdict == "hold"
    assert check(judgement, "time").verdict == "hold"


def test_what_only_looks_worse_holds() -> None:
    judgement = judge(10, seen(side(210, errors=5), side(1890)), SETTINGS)
    assert (judgement.verdict, judgement.weight) == ("hold", 10)
    assert "looks worse, e-value" in judgement.reason


@pytest.mark.parametrize(
    "what",
    [
        seen(side(199)),
        seen(side(300), side(199)),
        seen(side(0), side(0)),
        seen(Answered(ready_pods=1, pods=1), Answered()),
    ],
)
def test_too_little_traffic_holds(what: Seen) -> None:
    judgement = judge(10, what, SETTINGS)
    assert judgement.verdict == "hold"
    assert check(judgement, "traffic").verdict == "hold"
    assert "at least 200 are needed" in judgement.reason


def test_too_short_a_time_holds() -> None:
    judgement = judge(10, seen(side(300), seconds=59.0), SETTINGS)
    assert (judgement.verdict, judgement.reason) == (
        "hold",
        "time: 59 s of at least 60 s at this weight",
    )


@pytest.mark.parametrize(("ready", "pods"), [(0, 0), (0, 2), (1, 2)])
def test_pods_that_are_not_ready_hold(ready: int, pods: int) -> None:
    judgement = judge(10, seen(side(300, ready_pods=ready, pods=pods)), SETTINGS)
    assert judgement.verdict == "hold"
    assert check(judgement, "pods").verdict == "hold"


def test_a_candidate_whose_pods_restart_again_and_again_is_aborted_even_without_traffic() -> None:
    once = judge(0, seen(side(0, restarts=1)), SETTINGS)
    twice = judge(0, seen(side(0, restarts=2)), SETTINGS)
    assert (once.verdict, twice.verdict) == ("advance", "abort")
    assert "restarts: 2 of the candidate's 2 pods" in twice.reason


def test_restarts_that_befall_the_champion_as_well_are_not_the_candidates() -> None:
    judgement = judge(10, seen(side(300, restarts=4), side(restarts=4)), SETTINGS)
    assert judgement.verdict == "advance"


def test_a_failing_champion_aborts_no_candidate_that_is_better() -> None:
    judgement = judge(10, seen(side(300), side(errors=900)), SETTINGS)
    assert judgement.verdict == "advance"


def test_a_candidate_that_fails_as_much_as_a_failing_champion_neither_advances_nor_aborts() -> None:
    judgement = judge(10, seen(side(300, errors=90), side(2000, errors=600)), SETTINGS)
    assert judgement.verdict == "hold"
    assert "no worse, but over the 5.00% that may advance" in judgement.reason


def test_alone_the_candidate_is_held_against_the_absolute_limit_too() -> None:
    few = judge(100, seen(side(1000, errors=30), side(2000, errors=2)), SETTINGS)
    many = judge(100, seen(side(1000, errors=120), side(2000, errors=2)), SETTINGS)
    without = judge(100, seen(side(1000, errors=120), Answered()), SETTINGS)
    assert (few.verdict, many.verdict, without.verdict) == ("done", "abort", "abort")


def test_declined_requests_are_weighed_apart_from_errors() -> None:
    judgement = judge(10, seen(side(300, refused=120)), SETTINGS)
    assert judgement.verdict == "abort"
    assert check(judgement, "refused").verdict == "abort"
    assert check(judgement, "errors").verdict == "advance"


def test_a_candidate_ten_times_slower_is_aborted() -> None:
    judgement = judge(10, seen(side(60, seconds=histogram(0.2, of=60))), SETTINGS)
    assert judgement.verdict == "abort"
    assert check(judgement, "p50").words.startswith(
        "100–250 ms at the candidate, 10–25 ms at the champion: worse"
    )


def test_a_slow_tail_is_seen_where_the_median_is_the_same() -> None:
    tail = [0.02] * 9 + [0.7]
    judgement = judge(10, seen(side(300, seconds=histogram(*tail, of=300))), SETTINGS)
    assert check(judgement, "p50").verdict == "advance"
    assert check(judgement, "p99").verdict == "abort"


def test_times_on_two_sides_of_a_bound_are_not_taken_for_a_difference() -> None:
    champion = side(20_000, seconds=histogram(0.0249, of=20_000))
    candidate = side(20_000, seconds=histogram(0.0251, of=20_000))
    assert judge(10, seen(candidate, champion), SETTINGS).verdict == "advance"


def test_times_below_the_floor_are_not_worth_an_abort() -> None:
    champion = side(seconds=histogram(0.001, of=2000))
    candidate = side(300, seconds=histogram(0.02, of=300))
    assert judge(10, seen(candidate, champion), SETTINGS).verdict == "advance"
    assert decided(10, seen(candidate, champion), latency_floor_s=0.0).verdict == "abort"


def test_histograms_of_servers_with_other_bounds_are_compared_by_those_they_share() -> None:
    coarse = histogram(0.02, of=2000, bounds=(0.005, 0.025, 0.1, 1.0, math.inf))
    slow = side(300, seconds=histogram(0.2, of=300))
    assert check(judge(10, seen(slow, side(seconds=coarse)), SETTINGS), "p50").verdict == "abort"


def test_a_candidate_that_always_says_the_same_is_aborted() -> None:
    judgement = judge(10, seen(side(60, labels={"cat": 60, "dog": 0})), SETTINGS)
    assert judgement.verdict == "abort"
    assert check(judgement, "classes").words.startswith(
        "cat changed most: 60 of 60 (100.00%) predictions at the candidate, "
        "1,000 of 2,000 (50.00%) at the champion: worse"
    )


def test_a_class_that_only_one_of_them_knows_is_a_shift() -> None:
    judgement = judge(10, seen(side(300, labels={"cat": 150, "wolf": 150})), SETTINGS)
    assert check(judgement, "classes").verdict == "abort"


def test_a_shift_within_the_margin_does_not_matter_however_sure_it_is() -> None:
    large = side(900_000, labels={"cat": 540_000, "dog": 360_000})
    assert judge(10, seen(large, side(900_000)), SETTINGS).verdict == "advance"
    assert decided(10, seen(large, side(900_000)), max_class_shift=0.05).verdict == "abort"


def test_many_pictures_of_one_request_count_as_one() -> None:
    batches = side(20, labels={"cat": 64 * 18, "dog": 64 * 2})
    assert check(judge(10, seen(batches), SETTINGS), "classes").verdict == "hold"
    single = side(1280, labels={"cat": 64 * 18, "dog": 64 * 2})
    assert check(judge(10, seen(single), SETTINGS), "classes").verdict == "abort"


def test_less_confidence_is_worse_and_more_is_not() -> None:
    def of(value: float) -> Answered:
        bounds = (0.5, 0.8, 0.95, 1.0, math.inf)
        return side(300, confidence=histogram(value, of=300, bounds=bounds))

    assert check(judge(10, seen(of(0.4)), SETTINGS), "confidence").verdict == "abort"
    assert check(judge(10, seen(of(0.99)), SETTINGS), "confidence").verdict == "advance"


@pytest.mark.parametrize(
    ("replayed", "verdict"),
    [
        (Replayed(100, 98, 100, both_right=90, lost=1, gained=1), "advance"),
        (Replayed(100, 60, 100, both_right=50, lost=2, gained=30), "advance"),
        (Replayed(100, 60, 100, both_right=50, lost=8, gained=4), "hold"),
        (Replayed(100, 40, 100, both_right=40, lost=50, gained=0), "abort"),
        (Replayed(100, 75), "advance"),
        (Replayed(100, 65), "hold"),
        (Replayed(100, 40), "abort"),
        (Replayed(0, 0), "advance"),
    ],
)
@pytest.mark.parametrize("weight", [0, 25])
def test_replayed_pictures_count_by_rightness_or_else_by_agreement(
    replayed: Replayed, verdict: str, weight: int
) -> None:
    assert judge(weight, seen(side(300), replayed=replayed), SETTINGS).verdict == verdict


def test_when_the_time_is_over_a_hold_ends_as_the_settings_say() -> None:
    late = seen(side(10), total_seconds=SETTINGS.timeout_s + 1)
    aborted = judge(10, late, SETTINGS)
    held = judge(10, late, RolloutSettings(on_timeout="hold"))
    assert (aborted.verdict, aborted.weight, aborted.overdue) == ("abort", 0, False)
    assert aborted.reason.startswith("the rollout's 21,600 s are over, and still traffic: 10 ")
    assert (held.verdict, held.weight, held.overdue) == ("hold", 10, True)


def test_the_time_being_over_stops_no_candidate_that_may_advance() -> None:
    late = seen(side(300), total_seconds=SETTINGS.timeout_s + 1)
    assert judge(50, late, SETTINGS).verdict == "advance"


def test_the_chance_of_a_false_abort_is_shared_by_all_checks_of_all_windows() -> None:
    weighed = {"errors", "refused", "p50", "p99", "classes", "confidence"}
    weighed |= {"feedback", "accuracy"}
    replayed = Replayed(10, 10, 10, both_right=10)
    names = {each.name for each in judge(10, seen(side(), replayed=replayed), SETTINGS).checks}
    assert names - weighed == {"time", "pods", "restarts", "traffic"}
    assert needed_evidence(SETTINGS) == len(weighed) * 5 / SETTINGS.analysis.false_abort
    assert needed_evidence(RolloutSettings(dark=False, steps=(100,))) == 800


def test_what_only_looks_slower_than_at_another_time_does_not_hold_at_100_percent() -> None:
    def slow(requests: int) -> Answered:
        return side(requests, seconds=histogram(0.2, of=requests))

    few = seen(slow(15), side(15))
    assert check(decided(50, few), "p50").verdict == "hold"
    passed = check(decided(100, few), "p50")
    assert passed.verdict == "advance"
    assert passed.words.endswith("so only proof counts")
    assert decided(100, seen(slow(300))).verdict == "abort"


@pytest.mark.parametrize("steps", [[], [10, 50], [50, 10, 100], [10, 10, 100], [0, 100]])
def test_steps_that_do_not_ascend_to_100_are_refused(steps: list[int]) -> None:
    with pytest.raises(SettingsError, match="steps"):
        RolloutSettings.parse({"steps": steps})


@pytest.mark.parametrize("case", GOOD[:3], ids=lambda case: case.name)
def test_simulated_good_candidates_all_get_through(case: object) -> None:
    assert {ended.verdict for ended in run(case, 15)} == {"done"}


@pytest.mark.parametrize(
    ("name", "requests"),
    [
        ("5% errors, champion 0.1%", 800),
        ("20% errors, champion 0.1%", 150),
        ("50% errors, champion 0.1%", 50),
        ("10 × slower", 100),
        ("wrong: always the same class", 60),
        ("wrong: right classes, but unsure", 100),
    ],
)
def test_simulated_bad_candidates_are_all_stopped_within_few_requests(
    name: str, requests: int
) -> None:
    (case,) = [each for each in BAD if each.name == name]
    ended = run(case, 15)
    assert {one.verdict for one in ended} == {"abort"}
    assert max(one.requests for one in ended) <= requests


def test_wrong_answers_by_the_labels_that_come_back_abort_and_few_labels_hold() -> None:
    champion = side(told=400, wrong=20)
    bad = check(decided(50, seen(side(told=400, wrong=120), champion)), "feedback")
    assert bad.verdict == "abort"
    assert "120 of 400 (30.00%) at the candidate, 20 of 400 (5.00%) at the champion" in bad.words
    few = check(decided(50, seen(side(told=10, wrong=2), champion)), "feedback")
    assert (few.verdict, "looks worse" in few.words) == ("hold", True)
    good = check(decided(50, seen(side(told=400, wrong=25), champion)), "feedback")
    assert good.verdict == "advance"
    without = check(decided(50, seen(side(told=400, wrong=400), side())), "feedback")
    assert without.verdict == "advance"
