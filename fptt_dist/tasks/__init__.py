"""Tasks: data, window loss and metric; one file per task."""

from typing import TYPE_CHECKING

from fptt_dist.lazy import lazily
from fptt_dist.tasks.data.errors import DataError

__all__ = [
    "Adding",
    "Arrays",
    "Batch",
    "Copying",
    "DataError",
    "DatasetTask",
    "Language",
    "Pixels",
    "Split",
    "Task",
    "TaskShape",
    "check_task",
    "make_task",
    "rank_slice",
    "seeded",
]

if TYPE_CHECKING:
    from fptt_dist.tasks.adding import Adding
    from fptt_dist.tasks.arrays import Arrays
    from fptt_dist.tasks.base import Batch, Split, Task, TaskShape, rank_slice
    from fptt_dist.tasks.copying import Copying
    from fptt_dist.tasks.dataset_task import DatasetTask
    from fptt_dist.tasks.language import Language
    from fptt_dist.tasks.pixels import Pixels
    from fptt_dist.tasks.random_streams import seeded
    from fptt_dist.tasks.user_task import check_task, make_task
else:
    # Data sets are fetched and checked without torch.
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Adding": "adding",
            "Arrays": "arrays",
            "Copying": "copying",
            "DatasetTask": "dataset_task",
            "Language": "language",
            "Pixels": "pixels",
            "check_task": "user_task",
            "make_task": "user_task",
            "seeded": "random_streams",
        }
        | dict.fromkeys(("Batch", "Split", "Task", "TaskShape", "rank_slice"), "base"),
    )
