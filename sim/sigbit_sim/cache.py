"""Where built simulations and synthesis results are kept between runs."""

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder():
    """``$XDG_CACHE_HOME/sigbit`` or ``~/.cache/sigbit``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sigbit"
