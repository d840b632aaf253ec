"""A user's cell: what is found, what is refused, and in which words."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fptt_dist.models import make_layer
from fptt_dist.models.recurrent import LAYERS
from fptt_dist.user_code import UserCodeError, load_class

GOOD = """
import torch
from torch import nn

class Sum(nn.Module):
    def __init__(self, inputs, hidden):
        super().__init__()
        self.linear = nn.Linear(inputs, hidden)

    def forward(self, x, state=None):
        start = torch.zeros(x.shape[1], self.linear.out_features) if state is None else state
        y = start + self.linear(x).cumsum(0)
        return y, y[-1]
"""


def write(folder: Path, text: str, name: str = "cell.py") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def test_a_class_is_found_and_made(tmp_path: Path) -> None:
    kind = load_class(write(tmp_path, GOOD), "Sum", nn.Module)
    cell = make_layer(kind, 3, 5)
    assert type(cell) is kind
    assert cell.training
    assert [tuple(p.shape) for p in cell.parameters()] == [(5, 3), (5,)]


def test_trying_it_out_uses_up_no_random_number(tmp_path: Path) -> None:
    kind: Any = load_class(write(tmp_path, GOOD), "Sum", nn.Module)
    torch.manual_seed(4)
    alone, after = kind(3, 5), torch.get_rng_state()
    torch.manual_seed(4)
    cell = make_layer(kind, 3, 5)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(*pair) for pair in zip(cell.parameters(), alone.parameters(), strict=True))


def test_the_file_imports_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    write(tmp_path, GOOD, "neighbour_of_a_cell.py")
    kind = load_class(write(tmp_path, "from neighbour_of_a_cell import Sum\n"), "Sum", nn.Module)
    assert make_layer(kind, 1, 2) is not None


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    load_class(write(tmp_path, GOOD), "Sum", nn.Module)
    kind: Any = load_class(write(tmp_path, GOOD + "        # changed\nSum.version = 2\n"), "Sum", nn.Module)
    assert kind.version == 2


FILES = [
    ("", "has no Cell; its classes derived from torch.nn.Module: none"),
    (GOOD, "has no Cell; its classes derived from torch.nn.Module: Sum"),
    ("Cell = 3\n", "Cell of .*cell.py is no class derived from torch.nn.Module"),
    ("class Cell: pass\n", "Cell of .*cell.py is no class derived from torch.nn.Module"),
    ("import nothing_of_this_name\n", r"cannot be run: ModuleNotFoundError: .* \(cell.py, line 1\)"),
    ("x = 1\ndef f(:\n", r"cannot be run: SyntaxError: .*\(cell.py, line 2\)"),
    ("import sys\nsys.exit(3)\n", r"cannot be run: SystemExit: 3 \(cell.py, line 2\)"),
]


def test_what_is_wrong_with_the_file_is_said(subtests: pytest.Subtests, tmp_path: Path) -> None:
    for text, said in FILES:
        with subtests.test(said=said):
            with pytest.raises(UserCodeError, match=said) as caught:
                load_class(write(tmp_path, text), "Cell", nn.Module)
            assert "\n" not in str(caught.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match=r"there is no file .*/not.py: type the path of the file that defines Cell"):
        load_class(tmp_path / "not.py", "Cell", nn.Module)


class Cell(nn.Module):
    """Whatever `forward` of a subclass makes of it."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, hidden)


class OneArgument(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()


class Fails(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        raise RuntimeError("not today")


class NoState(Cell):
    def forward(self, x: Tensor) -> Any:
        return self.linear(x)


class YAlone(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x)


class Three(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x), None, None


class BatchFirst(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x).transpose(0, 1), None


class LastAlone(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x)[-1], None


class NotATensor(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return [self.linear(x)], None


class CountsInPython(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x), {"steps": len(x)}


class NeedsState(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x) + state[0], state


class CannotGoOn(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        assert state is None
        return self.linear(x), self.linear(x)[-1]


class Forgets(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x).cumsum(0), None


class LooksAhead(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x) + self.linear(x).mean(0), None


class NotANumber(Cell):
    def forward(self, x: Tensor, state: Any) -> Any:
        return self.linear(x) * torch.nan, None


HERE = Path(__file__).name
REFUSED: list[tuple[type[nn.Module], str]] = [
    (OneArgument, r"OneArgument\(3, 5\) cannot be made, of 3 inputs and 5 units: TypeError: .*takes 2 positional"),
    (Fails, rf"\(4, 3, 3\) and state=None failed: RuntimeError: not today \({HERE}, line \d+\)"),
    (NoState, "failed: TypeError: .*takes 2 positional arguments but 3 were given"),
    (YAlone, r"gave a Tensor, not the pair \(y, state\)"),
    (Three, r"gave a tuple of 3, not the pair \(y, state\)"),
    (BatchFirst, r"gave a y of shape \(3, 4, 5\), not of shape \(4, 3, 5\): steps, sequences, units"),
    (LastAlone, r"gave a y of shape \(3, 5\), not"),
    (NotATensor, "gave a y of type list, not"),
    (
        CountsInPython,
        "gave a state with a int in it: a state is a tensor, or tuples, lists and dictionaries of tensors",
    ),
    (NeedsState, "and state=None failed: TypeError"),
    (CannotGoOn, r"\(1, 3, 3\) and the state it gave failed: AssertionError"),
    (Forgets, r"other outputs where a sequence is cut in two windows \(they differ by \d.*\): its state must hold all"),
    (LooksAhead, "other outputs where a sequence is cut in two windows"),
    (NotANumber, r"\(4, 3, 3\) and state=None gave a y with NaN in it$"),
]


def test_what_breaks_the_protocol_is_said(subtests: pytest.Subtests) -> None:
    for kind, said in REFUSED:
        with subtests.test(kind=kind):
            with pytest.raises(UserCodeError, match=said) as caught:
                make_layer(kind, 3, 5)
            assert "\n" not in str(caught.value)


def test_the_packages_own_cells_keep_it(subtests: pytest.Subtests) -> None:
    for kind in LAYERS.values():
        with subtests.test(kind=kind):
            assert type(make_layer(kind, 3, 6)) is kind


def test_a_state_may_be_nested(tmp_path: Path) -> None:
    class Nested(Cell):
        def forward(self, x: Tensor, state: Any = None) -> Any:
            start = 0.0 if state is None else state["sum"][0]
            y = start + self.linear(x).cumsum(0)
            return y, {"sum": [y[-1]], "none": None}

    assert make_layer(Nested, 3, 5).training
