"""What a window hands on besides the recurrent state: its dropout masks, and its penalty on the activations."""

from typing import Any, NamedTuple

from torch import Tensor


class Carried(NamedTuple):
    """The state after a window of a network that has more to hand over than its recurrent state.

    Attributes:
        hidden: the recurrent state.
        masks: of dropout, by name, drawn once for the sequence; None: the next window draws its own.
        penalty: () what the window adds to the objective, attached to the graph; None: nothing.
    """

    hidden: Any
    masks: dict[str, Tensor] | None
    penalty: Tensor | None


def penalty_of(state: Any) -> Tensor | None:
    """What the window that left this state adds to the objective, 0-dim; None: nothing."""
    return state.penalty if isinstance(state, Carried) else None


def again(incoming: Any, outgoing: Any) -> Any:
    """The state that the window between these two is run again from: the incoming one, with the masks it was run with.

    Masks that were drawn for the window alone are not known any more, and are drawn anew.
    """
    masks = outgoing.masks if isinstance(outgoing, Carried) else None
    return incoming if masks is None else Carried(hidden_of(incoming), masks, None)


def hidden_of(state: Any) -> Any:
    """The recurrent state alone: what the next sequence of a stream begins with, and what a checkpoint holds."""
    return state.hidden if isinstance(state, Carried) else state
