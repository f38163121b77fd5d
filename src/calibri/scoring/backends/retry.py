"""What a score that is not finite leads to (``RewardConfig.on_failure``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from calibri.config import OnFailure
from calibri.scoring.measuring import check_finite, is_failed
from calibri.scoring.pictures import Pictures
from calibri.scoring.plain_json import encode
from calibri.scoring.units import Result, Row, Unit

# Measure to its numbers, one row for each row of a unit.
Values = dict[str, Tensor]


def finished(
    unit: Unit,
    values: Values,
    policy: OnFailure,
    sample: Callable[[Unit, Sequence[Row]], Pictures],
    measure: Callable[[Unit, Sequence[Row], Pictures], Values],
) -> Result:
    """Turn what was measured into the result of a unit.

    Args:
        unit: whose rows were measured.
        values: of its rows.
        policy: ``"retry"`` samples and measures once more what failed; then, and under ``"fail"``,
            a failure is an error; ``"drop"`` passes it on.
        sample: samples rows of the unit.
        measure: measures their images.

    Raises:
        RewardError: a number is not finite, and the policy is not to drop it.
    """
    again = _rows_to_retry(unit.rows, values) if policy == "retry" else []
    if again:
        rows = [unit.rows[i] for i in again]
        fresh = measure(unit, rows, sample(unit, rows))
        index = torch.tensor(again)
        values = {name: v.index_copy(0, index, fresh[name]) for name, v in values.items()}
    if policy != "drop":
        check_finite(values, unit.rows)
    result: Result = {"scores": {name: encode(scores) for name, scores in values.items()}}
    return result | ({"retried": len(again)} if again else {})


def _rows_to_retry(rows: Sequence[Row], values: Mapping[str, Tensor]) -> list[int]:
    """Rows that failed, with all images of their prompt: a grouped measure needs them together."""
    failed = {i for v in values.values() for i in is_failed(v).nonzero().flatten().tolist()}
    groups = {(rows[i][0], rows[i][1].prompt.id) for i in failed}
    return [i for i, (c, noise) in enumerate(rows) if (c, noise.prompt.id) in groups]
