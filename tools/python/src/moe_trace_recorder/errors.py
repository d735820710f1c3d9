"""The one exception of this package."""


class RecorderError(ValueError):
    """A model, a batch or a trace that cannot be recorded; the message names the value and what was expected."""
