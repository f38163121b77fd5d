"""Room for workers on the nodes of a cluster."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from calibri.scoring.backends.nodes import Needs, Node, place

GPUS = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0, 2.0])
NODES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 64)), max_size=6)


@given(NODES, GPUS, st.integers(1, 4), st.lists(st.integers(0, 9)), st.none() | st.integers(0, 20))
def test_nodes_are_filled_and_never_overfilled(sizes, gpus, cpus, taken, most):
    needs = Needs(gpus, cpus)
    nodes = [Node(str(i), f"host{i}", gpu, cpu) for i, (gpu, cpu) in enumerate(sizes)]
    there = Counter(str(i) for i in taken)
    used = [node for node in nodes for _ in range(there[node.id])]
    left = {node.id: node for node in nodes}
    for node in used:
        left[node.id] = left[node.id].without(needs)
    chosen = Counter(node.id for node in place(left.values(), needs, most))
    for node in nodes:
        count = chosen[node.id] + there[node.id]
        if chosen[node.id]:
            assert count * gpus <= node.gpus + 1e-5
            assert count * cpus <= node.cpus
        if most is None:  # not one more would fit
            assert (count + 1) * gpus > node.gpus + 1e-5 or (count + 1) * cpus > node.cpus
    if most is not None:
        assert sum(chosen.values()) == min(most, len(place(left.values(), needs)))


def test_few_workers_are_spread():
    nodes = [Node(name, name, 4, 8) for name in "abc"]
    assert [node.id for node in place(nodes, Needs(1, 1), 5)] == ["a", "b", "c", "a", "b"]
    assert place(nodes, Needs(0, 0)) == []
