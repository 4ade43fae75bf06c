"""The exceptions of the project, and the one that means "a person can fix this"."""


class UserError(Exception):
    """Something in the recipe, the data, a model or the machine that its owner can put right.

    The message is one line: what is wrong, where, and how to fix it. The `vcsoup` command prints
    it without a traceback and exits with code 2; any other exception is a defect of this project.
    """


TEXT_LIMIT = 3000
"""Characters of an exception's text that are read."""


EXIT_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, whether it saved first or not, as of a shell's."""


EXIT_PREEMPTED = 75
"""Exit code of a command, and of a rank, that saved and stopped on request (EX_TEMPFAIL)."""


class Preempted(BaseException):
    """Work was stopped on request, by a signal or the clock; the same command resumes it.

    As a KeyboardInterrupt it is no Exception: nothing on its way may take it for an error.
    """

    def __init__(self, by: int | None = None) -> None:
        super().__init__("stopped on request; run the same command to resume")
        self.by = by
        """The signal, where it is known."""


def reason_of(error: BaseException) -> str:
    """What foreign code raised, in one line: its type, and the start of what it says.

    Never raises, whatever the exception does when it is printed, and can be written as UTF-8.
    """
    kind = _printable(_name(error))
    try:
        said = " ".join(_printable(str(error)).split())[:300]
    except BaseException as second:
        said = f"(it raises {_printable(_name(second))} when it is printed)"
    return f"{kind}: {said}" if said else kind


def _name(error: BaseException) -> str:
    """The name of its type; a metaclass may have one of its own that raises."""
    return str(vars(type)["__name__"].__get__(type(error)))


def is_stop(error: BaseException) -> bool:
    """Whether an exception asks for an end, and does not say that code failed.

    Others need be no Exception either: those of Rust are not.
    """
    return isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, Preempted))


def _printable(text: str) -> str:
    """The text with lone surrogates and control characters as escapes.

    No file and few terminals take the first; the second would steer a terminal.
    """
    return "".join(
        each if each.isprintable() or each.isspace() else each.encode("unicode_escape").decode()
        for each in text[:TEXT_LIMIT]
    )
