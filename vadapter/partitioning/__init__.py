"""Mesh, logical axis rules and shardings: where every array of a run lies."""

from vadapter.partitioning.initialization import abstract_params, init_params
from vadapter.partitioning.mesh import MeshConfig, make_mesh
from vadapter.partitioning.partitioner import Partitioner
from vadapter.partitioning.rules import DEFAULT_RULES, Rules, constrain, is_one_cpu, ways

__all__ = [
    "DEFAULT_RULES",
    "MeshConfig",
    "Partitioner",
    "Rules",
    "abstract_params",
    "constrain",
    "init_params",
    "is_one_cpu",
    "make_mesh",
    "ways",
]
