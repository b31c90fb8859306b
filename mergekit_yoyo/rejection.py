"""From which weight on an input counts: for the merge, and for all that shows what it did."""

REJECTED = 1e-3  # an input of less weight is left out altogether, and marked as rejected
