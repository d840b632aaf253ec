"""State after a window beyond the recurrent state: its dropout masks, and its penalty on the activations."""

from typing import Any, NamedTuple

from torch import Tensor

from fptt_dist.types import State


class WindowState(NamedTuple):
    """The state after a window of a network that passes on more than its recurrent state.

    Attributes:
        hidden: the recurrent state.
        masks: of dropout, by name, drawn once for the sequence; None: the next window draws its own.
        penalty: () the term that the window adds to the objective, attached to the graph; None: nothing.
    """

    hidden: Any
    masks: dict[str, Tensor] | None
    penalty: Tensor | None


def penalty_of(state: State) -> Tensor | None:
    """Return the term that the window that left this state adds to the objective, 0-dim; None: nothing."""
    return state.penalty if isinstance(state, WindowState) else None


def replay_state(incoming: State, outgoing: State) -> State:
    """Return the state to run the window between these two again: the incoming one, with the masks it was run with.

    Masks that were drawn for the window alone are not known any more, and are drawn anew.
    """
    masks = outgoing.masks if isinstance(outgoing, WindowState) else None
    return incoming if masks is None else WindowState(hidden_of(incoming), masks, None)


def hidden_of(state: State) -> State:
    """Return the recurrent state alone, with which a stream's next sequence begins and which a checkpoint holds."""
    return state.hidden if isinstance(state, WindowState) else state
