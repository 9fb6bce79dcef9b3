"""The decisions, their wording, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.core.tasks import REGRESSION
from compressor.core.types import Metric, Timing, TimingProtocol
from compressor.gates import limits, verdicts
from compressor.gates.verdicts import FAIL, INCONCLUSIVE, PASS, Verdict
from compressor.stats import Paired, compare
from tests.gates.builders import metric, right_wrong


def drop(b: int, c: int, n: int, limit: float, wrong: int = 50) -> Verdict:
    base, new = right_wrong(b, c, n, wrong)
    return verdicts.paired_drop(base == 0, compare(base == 0, new == 0), limit)


def test_a_pass_gives_both_accuracies_the_bound_and_the_flips() -> None:
    assert drop(9, 6, 1797, 1.0) == Verdict(
        PASS,
        "acc 97.22% → 97.05% (−0.17 pp; 95% upper bound of the drop 0.56 pp ≤ limit 1.00 pp; "
        "n=1797: 9 new errors, 6 fixed)",
    )


def test_a_fail_gives_the_drop_its_bounds_and_the_exact_test() -> None:
    assert drop(31, 5, 1797, 1.0) == Verdict(
        FAIL,
        "drop 1.45 pp exceeds limit 1.00 pp (31 new errors, 5 fixed, n=1797; 95% bounds "
        "0.94–2.06 pp; exact McNemar p=6e-6, significant)",
    )


def test_an_inconclusive_says_what_is_ruled_out_and_how_many_samples_would_do() -> None:
    assert drop(4, 3, 360, 1.0) == Verdict(
        INCONCLUSIVE,
        "observed drop 0.28 pp is inside 1.00 pp, but 360 samples only rule out drops above "
        "1.72 pp; about 1,200 samples needed at this disagreement (1.9%)",
    )


def test_where_a_zero_drop_would_be_proven_already_the_observed_one_sets_the_samples() -> None:
    verdict = drop(25, 11, 1797, 1.0)  # 0.78 pp; 1 240 samples would do for a drop of 0
    assert verdict.state == INCONCLUSIVE
    assert "about 25,000 samples" in verdict.sentence
    assert "no number of samples" in drop(18, 0, 1800, 1.0).sentence


def test_a_drop_of_exactly_the_limit_is_not_a_fail_and_one_more_error_is() -> None:
    assert drop(18, 0, 1800, 1.0).state == INCONCLUSIVE
    assert drop(19, 0, 1800, 1.0).state == FAIL


def test_no_flip_on_few_samples_does_not_pass_half_a_point() -> None:
    assert drop(0, 0, 360, 0.5).state == INCONCLUSIVE
    assert drop(0, 0, 1797, 0.5).state == PASS


@pytest.mark.parametrize(("true", "least", "most"), [(0.0, 0.80, 1.0), (1.0, 0.03, 0.06)])
def test_a_wrong_pass_at_the_limit_stays_near_five_percent(
    true: float, least: float, most: float
) -> None:
    # published at 2 % disagreement, n=1797: PASS .89 for no drop, .05 for a drop at the limit
    gain, loss = 0.01 - true / 200, 0.01 + true / 200
    draws = np.random.default_rng(5).multinomial(1797, [loss, gain, 1 - loss - gain], size=2000)
    states: dict[tuple[int, int], str] = {}
    passed = 0
    for b, c in draws[:, :2].tolist():
        if (b, c) not in states:
            upper = 100 * Paired(b, c, 1797).upper()
            states[b, c] = drop(b, c, 1797, 1.0).state
            assert (states[b, c] == PASS) == (upper <= 1.0)
        passed += states[b, c] == PASS
    assert least <= passed / 2000 <= most


def test_one_flip_fails_the_identity_gate_and_none_passes_it() -> None:
    assert verdicts.identity(0, 360).state == PASS
    found = verdicts.identity(1, 360)
    assert found.state == FAIL
    assert "1 of 360" in found.sentence


def test_the_worst_class_is_named_only_if_it_stays_significant_after_correction() -> None:
    labels = np.repeat(np.arange(10.0), 40)
    base = np.ones(400, bool)
    new = base.copy()
    new[120:126] = False  # 6 of class 3: p = 2^-6, times 10 classes = .16
    assert verdicts.worst_class(labels, base, new) == ""
    new[126:130] = False  # 10 of class 3: p = .001 x 10
    text = verdicts.worst_class(labels, base, new)
    assert text.startswith("warning: class 3 drops 25.0 pp (10 new errors, 0 fixed, n=40")


def test_a_regression_score_is_compared_by_paired_bootstrap() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(2.0, 1.0, 400)
    worse = base + rng.normal(0.3, 0.1, 400)
    assert verdicts.score_drop(REGRESSION, base, worse, 0.1).state == FAIL
    assert verdicts.score_drop(REGRESSION, base, worse, 0.5).state == PASS
    assert verdicts.score_drop(REGRESSION, base, worse, 0.302).state == INCONCLUSIVE
    assert verdicts.score_drop(REGRESSION, worse, base, 0.0).state == PASS
    assert "mae" in verdicts.score_drop(REGRESSION, base, worse, 0.1).sentence
    assert verdicts.mean_limit(REGRESSION, base, float(base.mean()) + 1.0).state == PASS
    assert verdicts.mean_limit(REGRESSION, base, float(base.mean()) + 0.01).state == INCONCLUSIVE
    assert verdicts.mean_limit(REGRESSION, base, float(base.mean()) - 0.01).state == FAIL


def test_a_floor_must_be_proven_by_the_samples() -> None:
    assert verdicts.accuracy_floor(980, 1000, 97.0).state == PASS
    assert verdicts.accuracy_floor(975, 1000, 97.0).state == INCONCLUSIVE
    assert verdicts.accuracy_floor(969, 1000, 97.0).state == FAIL
    assert verdicts.accuracy_floor(98, 100, 97.0).state == INCONCLUSIVE


def speedup(value: float, spread: float, rounds: int = 30) -> Metric:
    noise = np.exp(spread * np.linspace(-1, 1, rounds))
    return metric(value, "x", list(value * noise))


@pytest.mark.parametrize(
    ("value", "spread", "kind", "state"),
    [
        (5.0, 0.02, "min", PASS),
        (3.0, 0.02, "min", FAIL),
        (4.05, 0.2, "min", INCONCLUSIVE),
        (3.0, 0.02, "max", PASS),
        (5.0, 0.02, "max", FAIL),
        (3.95, 0.2, "max", INCONCLUSIVE),
    ],
)
def test_a_ratio_is_judged_by_its_whole_interval(
    value: float, spread: float, kind: str, state: str
) -> None:
    found = limits.metric_limit(speedup(value, spread), kind, 4.0, unstable=False)
    assert found.state == state
    assert "30 interleaved rounds" in found.sentence


def test_unstable_or_few_rounds_decide_nothing() -> None:
    good = speedup(9.0, 0.01)
    assert limits.metric_limit(good, "min", 4.0, unstable=True).state == INCONCLUSIVE
    few = speedup(9.0, 0.01, rounds=5)
    assert limits.metric_limit(few, "min", 4.0, unstable=False).state == INCONCLUSIVE
    naked = Metric(1.5, "ms", "lower")
    assert limits.metric_limit(naked, "max", 4.0, unstable=False).state == INCONCLUSIVE


def test_a_size_is_exact_even_where_timings_are_unstable() -> None:
    size = metric(60_000, "bytes")
    assert limits.metric_limit(size, "max", 60_000, unstable=True).state == PASS
    found = limits.metric_limit(size, "max", 59_999, unstable=True)
    assert found == Verdict(FAIL, "60,000 bytes, limit ≤ 59,999 bytes (exact)")


@pytest.mark.parametrize(
    ("value", "other", "limit", "state"),
    [(100, 100, 1.0, PASS), (101, 100, 1.0, FAIL), (25, 100, 0.3, PASS), (0, 0, 1.0, PASS),
     (1, 0, 1.0, FAIL)],
)  # fmt: skip
def test_a_ratio_of_counts_is_exact(value: int, other: int, limit: float, state: str) -> None:
    found = limits.metric_ratio(metric(value), metric(other), limit, together=False, unstable=False)
    assert found.state == state


def test_measured_values_are_divided_only_round_by_round() -> None:
    base, cand = speedup(2.0, 0.05), speedup(1.0, 0.05)
    both = {"together": True, "unstable": False}
    assert limits.metric_ratio(cand, base, 0.6, **both).state == PASS
    assert limits.metric_ratio(base, cand, 0.6, **both).state == FAIL
    apart = limits.metric_ratio(cand, base, 0.6, together=False, unstable=False)
    assert apart.state == INCONCLUSIVE
    assert "beside each other" in apart.sentence


def test_percentiles_of_one_bench_are_not_said_to_come_from_two() -> None:
    one, two = Metric(1.5, "ms", "lower"), Metric(3.0, "ms", "lower")
    beside = limits.metric_ratio(one, two, 0.6, together=True, unstable=False)
    assert beside.state == INCONCLUSIVE
    assert "1.5 ms and 3 ms were measured beside each other" in beside.sentence
    assert "gate on a speedup" in beside.sentence
    apart = limits.metric_ratio(one, two, 0.6, together=False, unstable=False)
    assert "were not measured beside each other" in apart.sentence


def test_memory_is_decided_by_its_number_and_not_called_exact() -> None:
    peak = Metric(12.5, "MiB", "lower")
    found = limits.metric_limit(peak, "max", 20, unstable=True)
    assert found == Verdict(PASS, "12.5 MiB, limit ≤ 20 MiB (one number, no interval)")
    assert (
        "exact" not in limits.metric_ratio(peak, peak, 1.0, together=True, unstable=False).sentence
    )


def test_the_control_is_read_as_the_measurement_reads_it() -> None:
    """0.95-1.05 is not its own inverse, so that it matters which is divided by which."""
    from compressor.runtime.timing import AA_HIGH, AA_LOW, aa_ratio

    for control in np.linspace(0.94, 1.07, 40):
        rounds = {"base": (1.0,) * 9, "A/A": (control,) * 9}
        ratio = aa_ratio([[1.0]] * 9, [[control]] * 9)
        timing = Timing("m", TimingProtocol(), rounds, rounds)
        assert limits.noisy(timing, "base") == (not AA_LOW <= ratio <= AA_HIGH)


# The A/A median ratio over 25 interleaved rounds had sd .028 on a busy 2-core machine. Each run
# below gets that much as a shift of its own, which its interval cannot know, and noise between
# rounds that would by itself give the same sd once more (1.2533 s / 5 = .028).
RUN_SD, ROUND_SD, ROUNDS = 0.028, 0.112, 25


def simulated(rng: np.random.Generator, slower: float) -> Timing:
    base, cand, control = rng.lognormal(0, ROUND_SD / np.sqrt(2), (3, ROUNDS))
    spikes = 1 + 2.0 * (rng.random(ROUNDS) < 0.05)  # a neighbour wakes up
    shift = np.exp(rng.normal(0, RUN_SD, 2))
    rounds = {
        "base": tuple(base),
        "cand": tuple(cand * spikes * slower * shift[0]),
        "A/A": tuple(control * shift[1]),
    }
    return Timing("m", TimingProtocol(rounds=ROUNDS), rounds, rounds)


def judged(slower: float, runs: int) -> list[tuple[str, bool]]:
    """State, and whether the machine was too noisy to judge, per simulated run."""
    rng = np.random.default_rng(2026)
    timings = [simulated(rng, slower) for _ in range(runs)]
    return [
        (limits.latency(t, "base", "cand", 1.10).state, limits.noisy(t, "base")) for t in timings
    ]


def test_an_unchanged_model_never_fails_in_300_noisy_runs() -> None:
    states = [state for state, _ in judged(1.0, 300)]
    assert FAIL not in states  # shows a false alarm below 1 % at 95 % confidence
    assert states.count(PASS) > 30  # and the gate is not mute


def test_a_slowdown_of_a_quarter_never_passes_and_fails_wherever_the_control_holds() -> None:
    found = judged(1.25, 150)
    assert PASS not in [state for state, _ in found]
    assert all(state == INCONCLUSIVE for state, noisy in found if noisy)
    quiet = [state for state, noisy in found if not noisy]
    assert quiet.count(FAIL) / len(quiet) >= 0.80


def test_a_slowdown_of_a_quarter_always_fails_at_the_spread_of_a_quiet_machine() -> None:
    rng = np.random.default_rng(3)
    for _ in range(59):  # 59 of 59 shows a power of 95 % at 95 % confidence
        base, cand, control = rng.lognormal(0, 0.03, (3, 30))
        rounds = {"base": tuple(base), "cand": tuple(1.25 * cand), "A/A": tuple(control)}
        timing = Timing("m", TimingProtocol(), rounds, rounds)
        assert limits.latency(timing, "base", "cand", 1.10).state == FAIL


def test_a_control_outside_its_band_or_an_unstable_mark_stops_the_verdict() -> None:
    flat = (1.0,) * 30
    rounds = {"base": flat, "cand": (2.0,) * 30, "A/A": (1.06,) * 30}
    timing = Timing("m", TimingProtocol(), rounds, rounds)
    found = limits.latency(timing, "base", "cand", 1.10)
    assert found.state == INCONCLUSIVE
    assert found.sentence.startswith("machine too noisy")
    rounds = rounds | {"A/A": flat}
    timing = Timing("m", TimingProtocol(), rounds, rounds, unstable=True, note="process 7 trains")
    found = limits.latency(timing, "base", "cand", 1.10)
    assert (found.state, "process 7 trains" in found.sentence) == (INCONCLUSIVE, True)


def test_the_latency_sentence_gives_ratio_interval_limit_rounds_and_control() -> None:
    rounds = {"base": (1.0,) * 15, "cand": (1.18,) * 15, "A/A": (1.0,) * 15}
    timing = Timing("m", TimingProtocol(), rounds, rounds)
    assert limits.latency(timing, "base", "cand", 1.10) == Verdict(
        FAIL,
        "p50 latency ratio 1.18 [1.18, 1.18] vs baseline (limit 1.10; 15 interleaved rounds; "
        "A/A control 1.00 [1.00, 1.00])",
    )
