from dataclasses import dataclass, field

from workers.reward.server import ScoringServer


@dataclass
class Length:
    """Scores the length of a response, once it is prepared."""

    unit: list[int] = field(default_factory=list)

    def prepare(self):
        self.unit.append(2)

    def __call__(self, sample):
        images = None if sample.images is None else len(sample.images)
        reward = self.unit[0] * len(sample.response)
        return {"reward": reward, "truth": sample.ground_truth, "images": images}


def test_a_group_is_scored_in_order_as_json_values():
    server = ScoringServer(scorer=Length())
    server.prepare()
    group = [("q", "ab", "5", {}, (), None), ("q", "", None, {"level": 1}, (), (b"file",))]
    first, second = server.serve(group)
    assert first[:4] == ["scored", 4.0, {}, {"truth": "5"}]
    assert second[:4] == ["scored", 0.0, {"images": 1.0}, {}]
