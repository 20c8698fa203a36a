"""A run to send signals to: `python -m tests.training.signalled FOLDER PLACE`.

PLACE says where it hangs, after a line that tells so: `nowhere`, `start` (before the first step), `data` (in a reader's
thread, at step 3), `evaluation` (between two batches, at the end of three steps) or `deaf` (in an evaluation that does
not look whether it is told to stop).
"""

import sys
import threading
from concurrent import futures

from tests.training import small
from vadapter.base import signals
from vadapter.base.evaluator import EvalResult
from vadapter.training import initialize, waiting
from vadapter.training.loop import TrainConfig, train

NEVER = threading.Event()


def hang(line: str) -> None:
    print(line, flush=True)
    NEVER.wait()


def batches_that_hang(at: int | None):
    """Batches up to a step. The thread that then hangs is one that Python waits for at its end."""

    def batches(start: int):
        pool = futures.ThreadPoolExecutor(1)
        for step, batch in enumerate(small.batches(start), start):
            if step == at:
                pool.submit(hang, "hangs in data").result()
            yield batch

    return batches


class Evaluation:
    def __init__(self, deaf: bool, folder: str):
        self.name, self.every_steps = "val", None
        rows = small.batches(0)
        self.batches = (lambda: rows) if deaf else waiting.watched(lambda: rows, "the data", 0, folder)
        self.deaf = deaf

    def __call__(self, params):
        print("evaluates", flush=True)
        for _ in self.batches() if not self.deaf else ():
            pass
        hang("hangs in the evaluation")
        return EvalResult({})


def main(folder: str, place: str) -> int:
    steps = 3 if place in ("evaluation", "deaf") else 1_000_000
    with signals.Signals(own_process=True) as told:
        settings = TrainConfig(
            steps=steps,
            trainable=("adapter/.*", "head/.*"),
            optimizer=small.optimizer(),
            log_every=1,
            tensorboard=False,
        )
        model = small.Model()
        program = settings.program(model, small.batch(0), small.objective(model), small.partitioner())
        start = initialize.begin(program, folder, lambda: (small.params(), []))
        evaluators = [Evaluation(place == "deaf", folder)] if steps == 3 else []
        data = batches_that_hang({"start": 0, "data": 3}.get(place))
        found = train(settings, program=program, start=start, batches=data, model_dir=folder, evaluators=evaluators)
        told.leave(128 + found.signal if found.signal else 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
