"""Estimates of what the workers will send."""

from dataclasses import dataclass


@dataclass
class CommEstimate:
    """Estimated communication for one batch of sequences.

    Attributes:
        collectives: mean number per batch.
        bytes: mean number of bytes that each worker sends per batch.
        each: bytes of one collective.
        what: the payload and how often it is sent, in words.
    """

    collectives: float
    bytes: float
    each: int
    what: str

    def with_inside(self, inside: "CommEstimate") -> "CommEstimate":
        """Return this estimate plus that of what the workers of a node send among themselves."""
        if not inside.bytes:
            return self
        return CommEstimate(
            self.collectives + inside.collectives,
            self.bytes + inside.bytes,
            self.each,
            f"{self.what}; inside a node {inside.what}",
        )


NOTHING = CommEstimate(0.0, 0.0, 0, "nothing")
