"""A profile of some updates, for TensorBoard or xprof."""

import jax

from vadapter.base.array_types import PyTree


class Profile:
    """Profiles the updates of `TrainConfig.profile_steps`.

    Args:
        steps: (first, last); None profiles nothing.
        folder: where it goes.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: str):
        self._steps, self._folder, self._runs = steps, folder, False

    def before(self, step: int) -> None:
        """Begins where the next update, after `step` of them, is the first."""
        if self._steps and step + 1 == self._steps[0]:
            jax.profiler.start_trace(self._folder)
            self._runs = True

    def after(self, step: int, state: PyTree) -> None:
        """Ends when the last update is computed, which `state` is the result of."""
        if self._runs and self._steps and step >= self._steps[1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._runs = False
