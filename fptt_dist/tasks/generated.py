"""Tasks whose sequences are generated: training afresh at every epoch, validation and test once and for all."""

from abc import abstractmethod
from collections.abc import Iterator

from fptt_dist.tasks.task import Batch, Split, Task, share

STREAMS = {"train": 0, "validation": 1, "test": 2}
EVALUATION_BATCH = 500


class GeneratedTask(Task):
    """A task without data on disk.

    The validation and test sets do not depend on the seed, so that runs with different seeds are compared on the same
    sequences.

    Args:
        examples: training sequences an epoch.
        validation: sequences of the validation set.
        test: sequences of the test set.
        seed: of the training sequences.
    """

    def __init__(self, *, examples: int, validation: int, test: int, seed: int) -> None:
        self.train_examples = examples
        self.sizes = {"validation": validation, "test": test}
        self.seed = seed

    @abstractmethod
    def generate(self, seed: list[int], size: int) -> Batch:
        """`size` sequences, a pure function of `seed`."""

    def train_batch(self, epoch: int, cursor: int, size: int, part: slice) -> Batch:
        """Sequences `part` of the global batch: the whole batch is generated, then sliced."""
        return self.generate([STREAMS["train"], self.seed, epoch, cursor], size).select(part)

    def evaluation_batches(self, split: Split, rank: int, world: int) -> Iterator[Batch]:
        """This rank's share of the fixed set, at most 500 sequences at a time."""
        for start in range(0, self.sizes[split], EVALUATION_BATCH):
            size = min(EVALUATION_BATCH, self.sizes[split] - start)
            batch = self.generate([STREAMS[split], start], size).select(share(size, rank, world))
            if batch.size:
                yield batch
