"""The sentence that says which engine stands on which node."""

from orchestrator.cluster.nodes import describe_engines, table


def test_engines_are_listed_by_node():
    nodes = ["10.0.0.1 (ab12cd34)", "10.0.0.2 (ef56ab78)", "10.0.0.1 (ab12cd34)"]
    assert describe_engines(nodes) == (
        "3 engines on 2 nodes: 10.0.0.1 (ab12cd34): 0, 2; 10.0.0.2 (ef56ab78): 1"
    )
    assert describe_engines(nodes[:1]) == "1 engine on 1 node: 10.0.0.1 (ab12cd34): 0"


def test_the_table_of_nodes_counts_one_processor_as_one():
    node = {"NodeManagerAddress": "10.0.0.1", "NodeID": "ab12cd34ef", "Resources": {"CPU": 1.0}}
    assert table([node]) == "10.0.0.1         ab12cd34  1 CPU  0 GPUs"
