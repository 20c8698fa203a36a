"""The exit statuses of all commands, for whoever watches over a run. docs/reliability.md has the same table.

The scripts of `tpu_scripts/` follow it: they start a command again, or leave it, by its status alone.
"""

DONE = 0
"""The command did what it was asked for."""

BUG = 1
"""A fault of vadapter, after its traceback."""

USER = 2
"""Something only the user can change, after one paragraph: the same command would fail again."""

NO = 3
"""The command worked and its answer is no: `check` found what would spoil a run, `plan` that it does not fit, or a
training of `sweep` failed."""

PASSING = 75
"""The network, a bucket or another process of the run failed: the same command may work when it is started again."""

INTERRUPTED = 130
"""Ctrl-C. A training has saved first, if it had begun, and the same command goes on with it."""

PIPE = 141
"""Whoever read the output has gone, as in `vadapter ... | head`."""

STOPPED = 143
"""Told to stop (SIGTERM) and saved, or processes of a run did not all come: the same command goes on."""

FINAL = (DONE, USER, NO, INTERRUPTED)
"""What is not started again by itself. After any other status the command is started again."""
