"""Energy from readings: properties that hold for any of them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcai500.energy.integrate import NS_PER_S, Integrator, Quantity

START_NS = 1_790_000_000 * NS_PER_S
STEPS_NS = st.lists(st.integers(1, 10 * NS_PER_S), min_size=1, max_size=30)
POWERS_W = st.floats(0, 1e5)


@st.composite
def traces(draw: st.DrawFn) -> list[tuple[int, float]]:
    """Readings with times that grow and any power."""
    times_ns = [START_NS]
    for step_ns in draw(STEPS_NS):
        times_ns.append(times_ns[-1] + step_ns)
    return [(time_ns, draw(POWERS_W)) for time_ns in times_ns]


def integrate(trace: list[tuple[int, float]], begin_ns: int, end_ns: int, quantity: Quantity = "power_w") -> Integrator:
    integrator = Integrator(begin_ns, end_ns, quantity)
    for time_ns, value in trace:
        integrator.add(time_ns, value)
    return integrator


def counted(trace: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A counter of the same times that counts by those amounts."""
    total, readings = 0.0, []
    for time_ns, value in trace:
        total += value
        readings.append((time_ns, total))
    return readings


@given(traces(), st.floats(0, 1), st.sampled_from(["power_w", "energy_j"]))
def test_the_sum_of_parts_is_the_whole(trace: list[tuple[int, float]], share: float, quantity: Quantity) -> None:
    trace = counted(trace) if quantity == "energy_j" else trace
    begin_ns, end_ns = trace[0][0], trace[-1][0]
    cut_ns = begin_ns + round(share * (end_ns - begin_ns))
    whole = integrate(trace, begin_ns, end_ns, quantity)
    parts = integrate(trace, begin_ns, cut_ns, quantity), integrate(trace, cut_ns, end_ns, quantity)
    assert sum(part.energy_j for part in parts) == pytest.approx(whole.energy_j, rel=1e-9, abs=1e-6)


@given(traces(), POWERS_W, st.floats(0, 1), st.floats(0, 1))
def test_constant_power_gives_power_times_time(
    trace: list[tuple[int, float]], power_w: float, first: float, second: float
) -> None:
    span_ns = trace[-1][0] - START_NS
    begin_ns, end_ns = sorted(START_NS + round(share * span_ns) for share in (first, second))
    integrator = integrate([(time_ns, power_w) for time_ns, _ in trace], begin_ns, end_ns)
    assert integrator.energy_j == pytest.approx(power_w * (end_ns - begin_ns) / NS_PER_S)


@given(traces())
def test_power_and_the_counter_of_its_energy_agree(trace: list[tuple[int, float]]) -> None:
    counter = [(START_NS, 0.0)]
    for (before_ns, before), (after_ns, after) in pairwise(trace):
        counter.append((after_ns, counter[-1][1] + (before + after) / 2 * (after_ns - before_ns) / NS_PER_S))
    by_power = integrate(trace, START_NS, trace[-1][0])
    assert by_power.energy_j == pytest.approx(counter[-1][1])
    assert integrate(counter, START_NS, trace[-1][0], "energy_j").energy_j == pytest.approx(counter[-1][1])


@given(traces(), st.integers(0, 10**10), st.integers(0, 10**10))
def test_nothing_is_told_of_time_that_readings_do_not_enclose(
    trace: list[tuple[int, float]], before_ns: int, after_ns: int
) -> None:
    inside = integrate(trace, START_NS, trace[-1][0])
    wider = integrate(trace, START_NS - before_ns, trace[-1][0] + after_ns)
    assert wider.energy_j == inside.energy_j
    assert inside.is_covered
    assert wider.is_covered == (before_ns == after_ns == 0)
    outside = integrate(trace, trace[-1][0], trace[-1][0] + after_ns)
    assert (outside.energy_j, outside.num_readings) == (0, 0)


@given(traces())
def test_readings_are_counted_and_the_longest_gap_is_one_of_theirs(trace: list[tuple[int, float]]) -> None:
    integrator = integrate(trace, START_NS, trace[-1][0])
    gaps_ns = [after - before for (before, _), (after, _) in pairwise(trace)]
    assert (integrator.num_readings, integrator.longest_gap_ns) == (len(trace), max(gaps_ns))


def test_readings_beside_the_time_do_not_count() -> None:
    trace = [(START_NS + second * NS_PER_S, 100.0) for second in (0, 50, 60, 61, 62, 63, 100)]
    integrator = integrate(trace, START_NS + 60_500_000_000, START_NS + 62_500_000_000)
    assert (integrator.num_readings, integrator.longest_gap_ns) == (4, NS_PER_S)
    assert integrator.energy_j == pytest.approx(200)
    assert integrator.is_covered


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_is_no_reading_is_not_taken_in(value: float) -> None:
    integrator = integrate([(START_NS, 5.0)], START_NS, START_NS + 2, "energy_j")
    with pytest.raises(ValueError, match="is none"):
        integrator.add(START_NS + 1, value)
    with pytest.raises(ValueError, match="went back"):
        integrator.add(START_NS + 1, 4.0)
    with pytest.raises(ValueError, match="not later"):
        integrator.add(START_NS, 6.0)
    integrator.add(START_NS + 2, 7.0)
    assert integrator.energy_j == 2
