"""Names of axes: what vadapter's modules have beyond those of t5x."""

from collections.abc import Sequence
from typing import Any

from t5x import partitioning

_MORE = (("kv_heads", None), ("positions", None), ("queries", None), ("frames", None), ("classes", None))


def logical_axis_rules(**settings: Any) -> Sequence[tuple[str, Any]]:
    """Returns t5x's standard rules and those of the axes that only vadapter has, which stay whole.

    Args:
        **settings: of `t5x.partitioning.standard_logical_axis_rules`.
    """
    more = (*(settings.pop("additional_rules", None) or ()), *_MORE)
    return partitioning.standard_logical_axis_rules(additional_rules=more, **settings)
