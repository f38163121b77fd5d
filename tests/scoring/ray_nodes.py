"""A Ray cluster on this machine: a head that computes nothing, and nodes that come and go."""

import tempfile
from contextlib import ExitStack, suppress

import psutil


def family_of(process):
    """All processes that one has started, and these, and so on.

    Without Ray's own agents of a node, which look for their parent in their own time.
    """
    family = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "Agent" not in child.name():
                family.append(child)
    return family


def left_behind(family, seconds):
    """Processes of a family that are still there after some seconds."""
    return psutil.wait_procs(family, timeout=seconds)[1]


class Nodes:
    """A cluster; its nodes are processes of this machine."""

    def __enter__(self):
        from ray.cluster_utils import Cluster

        self._stack = ExitStack()
        # Sockets have short paths.
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="r", dir="/tmp"))
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "temp_dir": folder}
        head["object_store_memory"] = 80 * 2**20
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        return self

    def add(self, num_cpus, env=None, **options):
        options = {"object_store_memory": 80 * 2**20} | options
        return self._cluster.add_node(num_cpus=num_cpus, num_gpus=0, env_vars=env, **options)

    def remove(self, node):
        self._cluster.remove_node(node, allow_graceful=False)

    def __exit__(self, *exc):
        self._cluster.shutdown()
        self._stack.close()
