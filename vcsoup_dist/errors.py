"""The one exception that means "a person can mend this"."""


class UserError(Exception):
    """Something in the recipe, the data, a model or the machine that its owner can put right.

    The message is one line: what is wrong, where, and how to mend it. The `vcsoup` command prints
    it without a traceback and exits with code 2; any other exception is a defect of this project.
    """


def reason_of(error: BaseException) -> str:
    """What foreign code raised, in one line: its type, and the start of what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


EXIT_PREEMPTED = 75
"""Exit code of a command, and of a rank, that saved and stopped on request (EX_TEMPFAIL)."""


class Preempted(BaseException):
    """Work was stopped on request, by a signal or the clock; the same command goes on.

    As a KeyboardInterrupt it is no Exception: nothing on its way may take it for an error.
    """

    def __init__(self) -> None:
        super().__init__("stopped on request; the same command goes on from here")
