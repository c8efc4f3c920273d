"""The simulation of many nodes comes out where arithmetic says it must."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale.simulation import MEASURED, MOST_ONGOING, Outcome, Plant, Run, shares

NODE = 1 / sum(1 / rate.full for rate in MEASURED.values())
"""Photos a second of a node that is kept busy."""


def test_a_replica_has_as_many_in_hand_as_on_ray() -> None:
    text = (Path(__file__).parents[1] / "deploy/ray/serve.yaml").read_text(encoding="utf-8")
    deployments = [deployment for each in yaml.safe_load(text)["applications"] for deployment in each["deployments"]]
    assert {deployment["max_ongoing_requests"] for deployment in deployments} == {MOST_ONGOING}


def simulate(nodes: int, per_node: int = 8, front_s: float = 1e-4, network: float = 1e9, speed: float = 1.0) -> Outcome:
    plant = Plant(nodes, shares(per_node * nodes, list(MEASURED)), front_s, 1e6, network, speed)
    return Run(plant, 150 * nodes, list(MEASURED)).run()


@pytest.mark.parametrize("nodes", [1, 3, 10])
def test_nodes_that_are_kept_busy_do_as_many_times_as_much(nodes: int) -> None:
    outcome = simulate(nodes)
    assert outcome.rate == pytest.approx(nodes * NODE, rel=0.08)
    assert (outcome.limit, outcome.photos) == ("nodes", 150 * nodes)


def test_the_front_lets_no_more_through_than_it_can() -> None:
    outcome = simulate(10, front_s=0.1)
    assert outcome.rate == pytest.approx(1 / (3 * 0.1), rel=0.02)
    assert outcome.limit == "front"


def test_the_network_carries_no_more_than_it_can() -> None:
    outcome = simulate(10, network=10e6)
    assert outcome.rate == pytest.approx(10e6 / (3 * 1e6), rel=0.02)
    assert outcome.limit == "network"


def test_few_in_flight_leave_nodes_idle() -> None:
    plant = Plant(16, {"clip": 2, "faces": 2, "ocr": 1}, 1e-4, 1e6, 1e9)
    outcome = Run(plant, 100, list(MEASURED)).run()
    assert outcome.limit == "in flight"
    assert outcome.rate <= MEASURED["ocr"].alone * 1.01, "one page at a time, on one node"


@given(st.integers(1, 6), st.integers(1, 10), st.floats(1e-4, 0.2), st.floats(1e6, 1e9), st.floats(0.5, 20))
@settings(max_examples=20, deadline=None)
def test_no_part_is_busier_than_all_of_the_time(
    nodes: int, per_node: int, front_s: float, network: float, speed: float
) -> None:
    outcome = simulate(nodes, per_node, front_s, network, speed)
    assert all(0 < share <= 1 + 1e-9 for share in outcome.busy.values())
    assert outcome.rate <= min(nodes * speed * NODE, 1 / (3 * front_s), network / 3e6) * (1 + 1e-9)
