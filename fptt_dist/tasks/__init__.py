"""What is learnt: data, window loss and metric; one file a task."""

from fptt_dist.tasks.adding import Adding
from fptt_dist.tasks.task import Batch, Split, Task, share

__all__ = ["Adding", "Batch", "Split", "Task", "share"]
