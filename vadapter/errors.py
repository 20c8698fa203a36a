"""The one exception that is a message to the user."""


class UserError(ValueError):
    """Something that the user gave is wrong and only the user can change it.

    The message is one paragraph: what was expected, what was found, what to change. Commands print it without a
    traceback and exit with status 2; library callers can catch it as a `ValueError`.
    """
