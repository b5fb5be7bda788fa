"""Every exception of attnpass: each message says what was expected, what came, and the cure."""

from __future__ import annotations

from attnpass.text import one_line


class AttnpassError(Exception):
    """Base of all errors raised on purpose: one clear line, no traceback needed."""

    def __str__(self) -> str:
        """The message on one line, whatever names it quotes."""
        return one_line(super().__str__())


class OptionError(AttnpassError):
    """An option, form or site name that attnpass does not know."""


class PlanError(AttnpassError):
    """A plan that cannot be read, or does not fit the model."""


class CaptureError(AttnpassError):
    """A model that cannot be captured the way the caller needs."""


class TaskError(AttnpassError):
    """A tuning task that cannot be imported or is not usable."""


class StoreError(AttnpassError):
    """A database that cannot be opened, read or written."""


class MeasureError(AttnpassError):
    """A measurement that could not be taken or cannot be trusted."""


class OutputError(AttnpassError):
    """A report, picture or folder that cannot be written."""


class MissingDependencyError(AttnpassError):
    """An optional package that a command needs is not installed."""


class CheckError(AttnpassError):
    """A stage of the pass left a graph that does not keep the stage's promises (our mistake)."""


class ArgumentError(AttnpassError, ValueError):
    """An operator's argument has a wrong shape, dtype, device, layout or value."""


class BuildError(AttnpassError):
    """CPU kernels that cannot be compiled on this machine."""
