"""The releases of transformers that the recorder was tested on."""

from __future__ import annotations

import importlib.metadata
import warnings

TESTED = ("5.23", "5.24")


def warn_of_untested_transformers() -> None:
    """Warns if the installed transformers is not one of the tested releases."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return
    if not any(version == tested or version.startswith(f"{tested}.") for tested in TESTED):
        warnings.warn(
            f"the recorder was tested with transformers {' and '.join(TESTED)}, not with {version}: "
            "check that trace().offsets has the lengths of your sequences and that decoded tokens have phase 1",
            stacklevel=4,
        )
