"""A user's Dataset on two workers: refused where one of them finds another item, however late it comes."""

from pathlib import Path

from fptt_dist.config import Config
from fptt_dist.parallel import LaunchEnvironment
from tests.parallel.pool import Pool
from tests.parallel.runs import refusal
from tests.training.test_own_datasets import own, write_tones


def elsewhere(environment: LaunchEnvironment, config: Config, places: list[str]) -> str:
    """The message that this worker ends with, whose Dataset reads its own one of `places`."""
    task = config.task.model_copy(update={"options": {"place": places[environment.rank]}})
    return refusal(environment, config.model_copy(update={"task": task}))


def test_other_items_on_another_worker_are_refused(pool: Pool, tmp_path: Path) -> None:
    file = write_tones(tmp_path)
    text = file.read_text().replace("noise: float = 0.3", "place: str").replace("noise if", "0.3 if")
    text = text.replace("self.lengths = ", 'self.labels[-1] = open(place).read() == "1"\n        self.lengths = ')
    file.write_text(text)
    for name, content in (("one", "0"), ("same", "0"), ("other", "1")):
        (tmp_path / name).write_text(content)

    def said(*names: str) -> list[str]:
        config = own(file, tmp_path / "-".join(names))
        return pool.run(elsewhere, config, [str(tmp_path / name) for name in names], world=2)

    assert said("one", "same") == ["accepted"] * 2
    for message in said("one", "other"):
        assert message.startswith("rank 1 finds other data than rank 0, as many sequences of other values: give all")
