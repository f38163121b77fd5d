"""Ray's calls, and its exceptions in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from calibri.errors import CalibriError, first_line
from calibri.scoring.backends.board import WorkerLost
from calibri.scoring.backends.nodes import Needs, Node


class ObjectGone(WorkerLost):
    """What one actor made for another is lost, with its node."""


class Calls:
    """What is asked of Ray.

    Args:
        ray: the module, in a program that has joined a cluster.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._closed = False

    def close(self) -> None:
        """Ask no more: Ray would start a new cluster for it."""
        self._closed = True

    def head(self) -> str:
        """Say where the head of the cluster is, host:port."""
        return str(self._ray.get_runtime_context().gcs_address)

    def nodes(self) -> list[Node]:
        """List the nodes that are alive."""
        return [
            Node(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})",
                node["Resources"].get("GPU", 0.0),
                node["Resources"].get("CPU", 0.0),
            )
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def start(self, kind: type, needs: Needs, node: Node) -> Any:
        """Have an actor started on a node as soon as it has room."""
        where = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            node.id, soft=False
        )
        return (
            self._ray.remote(kind)
            .options(
                num_cpus=needs.cpus,
                num_gpus=needs.gpus,
                max_restarts=0,
                scheduling_strategy=where,
            )
            .remote()
        )

    def ask(
        self,
        actor: Any,
        method: str,
        *args: Any,
        timeout: float | None,
        node: Node,
        parts: int = 1,
    ) -> Any:
        """Call a method of an actor and wait for its answer.

        Args:
            actor: of ``start``.
            method: its name.
            args: plain values, or references to objects in Ray's store.
            timeout: seconds after which the actor is taken for stuck and killed.
            node: where it lives.
            parts: of the answer; of several, only the first is fetched, and the others are
                references.

        Raises:
            CalibriError: what the method raised.
            WorkerLost: the actor or its node is dead, or it is stuck.
        """
        if self._closed:
            raise WorkerLost("the run is over", blameless=True)
        errors = self._ray.exceptions
        try:
            call = getattr(actor, method).options(num_returns=parts)
            made = call.remote(*args)
            if parts == 1:
                return self._ray.get(made, timeout=timeout)
            return self._ray.get(made[0], timeout=timeout), *made[1:]
        except errors.GetTimeoutError:
            self.kill(actor)
            raise WorkerLost(f"no answer from {node.name} within {timeout:.0f} seconds") from None
        except errors.RayActorError as error:
            gone = error.preempted or not self._is_alive(node)
            raise WorkerLost(_of_death(error, node, gone=gone), blameless=gone) from error
        except errors.ObjectLostError as error:
            words = f"images on their way to {node.name} are lost"
            raise ObjectGone(words, blameless=True) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, CalibriError):
                raise error.cause from None
            self.kill(actor)  # who knows what it is worth after this
            raise WorkerLost(f"{node.name} failed with {error.cause!r}") from error
        except errors.RayError as error:
            self.kill(actor)
            raise WorkerLost(f"{node.name}: {first_line(error)}") from error

    def _is_alive(self, node: Node) -> bool:
        return not self._closed and any(other.id == node.id for other in self.nodes())

    def kill(self, actor: Any) -> None:
        """End an actor at once, alive or not."""
        if not self._closed:
            with contextlib.suppress(Exception):
                self._ray.kill(actor)

    def request(self, needs: Sequence[Needs]) -> None:
        """Ask a cluster that scales itself for room for workers; none to ask no more."""
        from ray.autoscaler.sdk import request_resources

        amounts = [{"CPU": each.cpus, "GPU": each.gpus} for each in needs]
        request_resources(bundles=[{k: v for k, v in each.items() if v} for each in amounts])


def _of_death(error: Exception, node: Node, *, gone: bool) -> str:
    if gone:
        return f"node {node.name} is gone"
    lines = str(error).strip().splitlines()
    if getattr(error, "_actor_init_failed", False):
        return f"{node.name} cannot start a worker: {lines[-1]}"
    return f"a process on {node.name} died, perhaps for want of memory"
