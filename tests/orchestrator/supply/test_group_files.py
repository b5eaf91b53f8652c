"""Where groups lie in a file: rows counted through shared batches, and back to the same groups."""

from orchestrator.supply.group_files import places, read_groups, split_groups
from workers.data.plans import Slice
from workers.data.trajectory import RolloutGroup, TrajectoryMeta


def metas(group, count):
    return tuple(
        TrajectoryMeta(
            prompt_uid=group,
            group_id=group,
            rollout_id=f"{group}/{k}",
            num_tokens=4,
            num_trained=2,
            num_sampled=2,
            finish_reason="stop",
            outcome="scored",
            reward=1.0,
            reward_parts={},
            min_version=0,
            max_version=0,
            generate_s=0.1,
            reward_s=0.01,
        )
        for k in range(count)
    )


def test_groups_of_one_batch_name_it_once():
    groups = [
        RolloutGroup(group_id="a", metas=metas("a", 2), batch="first", start=0),
        RolloutGroup(group_id="b", metas=metas("b", 3), batch="second", start=5),
        RolloutGroup(group_id="c", metas=metas("c", 1), batch="first", start=2),
    ]
    slices, batches = places(groups)
    assert batches == ["first", "second"]
    assert slices == [
        Slice(batch=0, start=0, length=2),
        Slice(batch=1, start=5, length=3),
        Slice(batch=0, start=2, length=1),
    ]


def test_rows_in_order_are_the_groups_again():
    rows = [*metas("a", 2), *metas("b", 3), *metas("c", 1)]
    groups = split_groups(rows, "file")
    assert [(group.group_id, group.start, len(group.metas)) for group in groups] == [
        ("a", 0, 2),
        ("b", 2, 3),
        ("c", 5, 1),
    ]
    assert [meta for group in groups for meta in group.metas] == rows
    assert {group.batch for group in groups} == {"file"}
    assert split_groups([], "file") == []


def test_a_folder_without_the_file_holds_no_group(tmp_path):
    assert read_groups(tmp_path, timeout_s=1.0) == []
