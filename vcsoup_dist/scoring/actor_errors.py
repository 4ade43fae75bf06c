"""What a person is told about an exception in an actor that its machine is to blame for."""

from __future__ import annotations

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_error


def mendable(cause: BaseException, what: str) -> UserError | None:
    """The line for an exception that no other try would mend, or None.

    `what`: what the actor was at.
    """
    return cause if isinstance(cause, UserError) else write_error(cause, what)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether Python or PyTorch could not get memory, on the machine or its GPU."""
    # By name and words: PyTorch need not be loaded here to tell.
    return (
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(cause)
    )
