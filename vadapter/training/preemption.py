"""When a run of many processes is told to stop, all of them stop at one point."""

import jax


class Agreement:
    """Agrees with the other processes on where to stop. All of them must call it at the same points.

    jax tells all processes of a SIGTERM that one of them got, and names the point: one that none has reached yet.
    """

    def __init__(self) -> None:
        self._points = 0

    def __call__(self) -> bool:
        """Whether to stop at this point."""
        from jax.experimental import multihost_utils

        self._points += 1
        return multihost_utils.reached_preemption_sync_point(self._points)


def can_agree() -> bool:
    """Whether jax tells processes of each other's signals; JAX_ENABLE_PREEMPTION_SERVICE=false turns that off."""
    from jax._src import distributed  # jax has no public way to ask

    return jax.process_count() > 1 and distributed.global_state.preemption_sync_manager is not None
