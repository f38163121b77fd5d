"""Keep the libraries below us from talking over the output of a command."""

from __future__ import annotations

import sys
import warnings


def quiet_libraries() -> None:
    """Silence warnings and loading bars of diffusers and transformers; errors still show.

    Download bars of the hub stay: gigabytes without a sign of life look like a hang.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    if not sys.warnoptions:  # python -W and PYTHONWARNINGS still have their way
        warnings.simplefilter("ignore")
