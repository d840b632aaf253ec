"""What is learnt: data, window loss and metric; one file a task."""

from fptt_dist.tasks.adding import Adding
from fptt_dist.tasks.copying import Copying
from fptt_dist.tasks.data_error import DataError
from fptt_dist.tasks.language import Language
from fptt_dist.tasks.pixels import Pixels
from fptt_dist.tasks.task import Batch, Split, Task, share

__all__ = ["Adding", "Batch", "Copying", "DataError", "Language", "Pixels", "Split", "Task", "share"]
