"""Exceptions of a worker that another attempt would not avoid, or that lack of memory caused."""

from __future__ import annotations

from vcsoup_dist.errors import UserError
from vcsoup_dist.files import write_error


def final_error(cause: BaseException, what: str) -> UserError | None:
    """The line for an exception that no other attempt would avoid, or None.

    `what`: the worker's task, or its pool.
    """
    return cause if isinstance(cause, UserError) else write_error(cause, what)


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether Python or PyTorch could not allocate memory, on the machine or its GPU."""
    # By name and message: PyTorch need not be loaded here.
    return (
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(cause)
    )
