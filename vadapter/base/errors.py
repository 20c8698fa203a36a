"""The one exception that is a message to the user."""


class UserError(ValueError):
    """Something that the user gave is wrong and only the user can change it.

    The message is one paragraph: what was expected, what was found, what to change. Commands print it without a
    traceback and exit with `exit_status`; library callers can catch it as a `ValueError`.

    Attributes:
        exit_status: of a command; 2, which says that the same command would fail again.
    """

    exit_status: int = 2
