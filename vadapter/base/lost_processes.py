"""Errors that mean that another process of the run is gone, in whatever class jax and its libraries raise them."""

import re

from vadapter.base import storage_errors

# Errors of XLA, by name: jax is not imported to ask. Some that come out of a compiled function's first call are a plain
# ValueError or RuntimeError instead, with the name of the status before the text.
_CLASSES = ("JaxRuntimeError", "XlaRuntimeError")
_STATUS = re.compile(r"(?:UNKNOWN|INTERNAL|ABORTED|CANCELLED|UNAVAILABLE|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
_OF_XLA = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "Connection reset by peer", "Connection closed by peer")
# What no bucket says.
_OF_PROCESSES = ("Gloo", "coordination service", "heartbeat timeout")


def of_jax(error: BaseException) -> bool:
    """Whether an error is one of XLA's own class."""
    return any(kind.__name__ in _CLASSES for kind in type(error).__mro__)


def said(error: BaseException) -> str | None:
    """Returns what an error, or one that it came from, says of a lost process; None where it says nothing of one."""
    for one in storage_errors.chain(error):
        text = str(one)
        plain = type(one) in (ValueError, RuntimeError) and _STATUS.match(text)
        if any(word in text for word in _OF_PROCESSES) and (of_jax(one) or plain):
            return text
        if any(word in text for word in _OF_XLA) and of_jax(one):
            return text
    return None
