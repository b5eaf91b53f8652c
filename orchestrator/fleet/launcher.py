"""Launch rollout engines as Ray actors, and reserve places on the cluster for more of them.

The engines of the configuration run in bundles of one placement group. An engine that joins later
has a placement group of its own, with one bundle of the same shape: Ray places the bundle when its
resources are free, an autoscaler adds a node for it, and the resources go back when the engine
leaves. Runs in the driver. Which engine joins or leaves is decided in `membership.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util import placement_group_table
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from conf.schema import TrainConfig
from conf.tables.transports import Reach
from orchestrator.planning import capacity
from orchestrator.planning.placement import FreePlaces
from orchestrator.planning.settings import vllm_settings
from orchestrator.planning.sources import chat_template
from workers.engines.vllm.settings import engine_env
from workers.rollout.limits import BoundedEnvironment
from workers.rollout.worker import RolloutWorker
from workers.worker_group import Placement, WorkerGroup

NODE_LABEL = "ray.io/node-id"


class EngineLauncher:
    """Launcher of the processes of engines, which load nothing until they are told to.

    Args:
        config: of the run.
        run_id: names the run in every trajectory.
        model_path: the folder that an engine loads before its first publication.
        environments: that produce an engine's samples, by the key in a request.
        scores_together: True if the scorer wants all siblings of a prompt in one call.
        images_for_reward: True if the scorer reads the images of prompts.
        early_stop: the rule by which a group's remaining samples are not needed.
        env: variables of every process.
        placement: placement group of the configuration's engines, already reserved.
        nodes: ids of the nodes of all processes of the run, the learner's first rank's first.
        gpu_fraction: share that an engine may take of a GPU that it shares; None of one of its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        run_id: str,
        model_path: str,
        environments: Mapping[str, BoundedEnvironment],
        scores_together: bool = False,
        images_for_reward: bool = False,
        early_stop: Any,
        env: Mapping[str, str],
        placement: PlacementGroup,
        nodes: Sequence[str],
        gpu_fraction: float | None = None,
    ) -> None:
        self._config, self._run_id, self._model_path = config, run_id, model_path
        self._environments, self._early_stop, self._env = environments, early_stop, dict(env)
        self._scores_together = scores_together
        self._images_for_reward = images_for_reward
        self._placement, self._gpu_fraction = placement, gpu_fraction
        self._learner_node = nodes[0]
        self._own: dict[int, PlacementGroup] = {}  # of engines that joined later
        one_node = len(set(nodes)) == 1 and not capacity.joins_elsewhere(config)
        self.transport = capacity.choose_transport(config, one_node=one_node)
        # Over other transports engines may join on other nodes of a running cluster.
        beside = one_node and self.transport.reach is not Reach.ANY
        self.one_node = beside or config.cluster.address is None

    @property
    def shape(self) -> dict[str, float]:
        """Resources that one engine reserves from Ray, in CPUs and GPUs."""
        role, devices = self._config.cluster.rollout, self._config.rollout.tensor_parallel_size
        shape = {"CPU": role.num_cpus, "GPU": role.num_gpus * devices}
        return {kind: amount for kind, amount in shape.items() if amount}

    def launch_first(self) -> WorkerGroup[RolloutWorker]:
        """Launch the engines of the configuration."""
        numbers = range(self._config.rollout.num_engines)
        return self._launch(numbers, self._placement, numbers)

    def launch(self, number: int, place: PlacementGroup) -> Any:
        """Launch one more engine in a reserved place of `request_place`; return its handle."""
        self._own[number] = place
        return self._launch([number], place, [0])[number]

    def _launch(
        self, numbers: Sequence[int], place: PlacementGroup, bundles: Sequence[int]
    ) -> WorkerGroup[RolloutWorker]:
        config, role = self._config, self._config.cluster.rollout
        settings = {
            number: vllm_settings(
                config,
                self._model_path,
                engine_id=number,
                transport=self.transport.name,
                gpu_fraction=self._gpu_fraction,
            )
            for number in numbers
        }
        template = chat_template(config.data)
        return WorkerGroup.launch(
            "rollout",
            RolloutWorker,
            ranks=numbers,
            arguments=lambda number: {
                "run_id": self._run_id,
                "settings": settings[number],
                "max_prompt_tokens": config.data.max_prompt_tokens,
                "template": template,
                "environments": self._environments,
                "reward_timeout_s": config.reward.timeout_s,
                "reward_start_s": config.reward.start_s,
                "reward_answer_s": config.cluster.timeouts.engine_s,
                "scores_together": self._scores_together,
                "images_for_reward": self._images_for_reward,
                "include_prefill": config.reward.include_prefill,
                "early_stop": self._early_stop,
                "end_token_ids": tuple(config.rollout.sampling.stop_token_ids),
            },
            env=lambda number: {**self._env, **engine_env(settings[number], role.threads)},
            restarts=True,
            placement=Placement(
                group=place,
                bundles=bundles,
                num_cpus=role.num_cpus,
                num_gpus=role.num_gpus * config.rollout.tensor_parallel_size,
            ),
            max_concurrency=1000,
        )

    # ---- places ----

    def request_place(self) -> PlacementGroup:
        """Request a place for one engine, which Ray reserves once its resources are free."""
        required = self._required_node()
        selector = None if required is None else [{NODE_LABEL: required}]
        return placement_group([self.shape], bundle_label_selector=selector)

    def _required_node(self) -> str | None:
        """Return the node of all engines where weights reach no other; None where any will do."""
        if self.transport.reach is not Reach.NODE:
            return None
        return self._learner_node

    def find_reserved(self, places: Sequence[PlacementGroup]) -> list[PlacementGroup]:
        """Return those of some places that Ray has reserved; Ray is asked once for all."""
        nodes = _nodes_of_all() if places else {}
        return [place for place in places if nodes.get(place.id.hex(), {}).get(0)]

    def find_placed(self) -> set[int]:
        """Return the engines that have a place; Ray is asked once for all.

        An engine has none while its node is gone and no other is free.
        """
        nodes = _nodes_of_all()
        first = nodes.get(self._placement.id.hex(), {})
        own = {number: nodes.get(place.id.hex(), {}) for number, place in self._own.items()}
        placed = {number for number, node in first.items() if node and number not in own}
        return placed | {number for number, bundles in own.items() if bundles.get(0)}

    def node(self, number: int) -> str | None:
        """Return the id of the node where an engine has its place; None while it has none."""
        own = self._own.get(number)
        return self._node(self._placement, number) if own is None else self._node(own, 0)

    @staticmethod
    def _node(place: PlacementGroup, bundle: int) -> str | None:
        nodes: dict[int, str] = placement_group_table(place).get("bundles_to_node_id", {})
        return nodes.get(bundle) or None

    def release_place(self, place: PlacementGroup) -> None:
        """Withdraw the request for a place, or give a reserved place back."""
        remove_placement_group(place)

    def end(self, number: int, handle: Any) -> None:
        """End an engine's process and give back the engine's own placement group.

        A bundle of the engines' group stays with the run, because Ray cannot divide a group.
        """
        ray.kill(handle)
        if (own := self._own.pop(number, None)) is not None:
            remove_placement_group(own)

    def free_places(self) -> FreePlaces:
        """Return the resources that are free now on every node where an engine may run."""
        required = self._required_node()
        names = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
        free = {
            f"{names[node]} ({node[:8]})": resources
            for node, resources in available_resources_per_node().items()
            if node in names and required in (None, node)
        }
        return FreePlaces.of(self.shape, free)


def _nodes_of_all() -> dict[str, dict[int, str]]:
    """Return bundle -> node of every placement group of the cluster, by the group's id in hex."""
    return {
        group: record["bundles_to_node_id"] for group, record in placement_group_table().items()
    }
