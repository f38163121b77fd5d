"""What belongs to one model, and so to no copy of it."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from calibri.errors import CalibrationError


class Uncopied:
    """Base of what changes one model in place: copying or pickling it, or that model, is refused.

    A copy would go on following the scales of the first model, or keep a part of them.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse; ``copy``, ``deepcopy`` and ``pickle`` all ask here."""
        raise CalibrationError(
            "A model with a calibration on it cannot be copied or pickled: its scales belong to "
            "this one model. Call unload() first and load the calibration onto the copy too, or "
            "call fuse(), after which the scales are ordinary weights."
        )
