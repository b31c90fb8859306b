"""What one tensor holds: one problem, or many (the experts that transformers 5 packs together).

"Tensor" in the method means what a checkpoint stores. transformers 5 stacks the per-expert weights
of most mixture-of-experts families to `gate_up_proj` [E, 2I, H] and `down_proj` [E, H, I]; these
merge as E separate gate, up and down tensors would.
"""

from dataclasses import dataclass

from torch import Tensor

from mergekit_yoyo.algorithm.options import Experts
from mergekit_yoyo.errors import YoyoError


@dataclass(frozen=True)
class Packing:
    """How separate tensors were packed to one.

    stacked: the first axis counts tensors (experts). pieces: equal pieces concatenated along axis 1
    (2 for gate and up).
    """

    stacked: bool = False
    pieces: int = 1


WHOLE = Packing()


def packing_for(experts: Experts, name: str) -> Packing:
    """The packing that a direct call means: `separate` needs only the name to know gate_up.

    `auto` is `packed` here, since a bare tensor has no model type to ask.
    """
    if experts == "separate":
        return Packing(stacked=True, pieces=2 if "gate_up_proj" in name else 1)
    return WHOLE


def problems(tensor: Tensor, packing: Packing) -> Tensor:
    """The tensor as [B, ...], one problem per row: a view wherever its strides allow one.

    B is 1 for a whole tensor, E for stacked experts, and 2 E for stacked experts with gate and up
    concatenated (gate and up of the first expert, then of the second, ...).

    Raises YoyoError if the shape does not fit the packing.
    """
    if packing == WHOLE:
        return tensor.unsqueeze(0)
    if tensor.ndim < 3 or tensor.shape[1] % packing.pieces:
        raise YoyoError(
            f"experts: separate expects a tensor [experts, {packing.pieces} x rows, columns]; got "
            f"shape {list(tensor.shape)}. Use experts: packed, which merges it as one tensor."
        )
    experts, rows, *rest = tensor.shape
    pieces = tensor.reshape(experts, packing.pieces, rows // packing.pieces, *rest)
    return pieces.flatten(0, 1) if packing.stacked else pieces.transpose(0, 1)
