"""Which quantizers may be the members of a residual quantizer."""

from collections.abc import Sequence
from typing import cast

from companion._arguments import brief, check_size
from companion.quantizers.base import Quantizer
from companion.quantizers.ema import EMAVectorQuantizer
from companion.quantizers.projected import ProjectedQuantizer
from companion.quantizers.vector import VectorQuantizer


def checked_members(quantizers: object, depth: int | None) -> list[Quantizer]:
    """The quantizers as a list: those given, or the one that is shared."""
    shared = isinstance(quantizers, Quantizer)
    if not shared and (not isinstance(quantizers, Sequence) or isinstance(quantizers, str | bytes)):
        raise ValueError(f"quantizers: got {brief(quantizers)}, want a quantizer, or a list of at least one")
    if depth is not None:
        check_size("depth", depth)
    members = [quantizers] if isinstance(quantizers, Quantizer) else list(cast(Sequence[Quantizer], quantizers))
    if shared != (depth is not None) or not members:
        raise ValueError(
            f"depth: got {depth} with {'one quantizer' if shared else f'a list of {len(members)}'}, want a number "
            "from 1 for one shared quantizer, and None for a list of at least one"
        )
    for i, member in enumerate(members):
        check_member(i, member, members[0], "the first has")
    if len({id(member) for member in members}) < len(members):
        raise ValueError("quantizers: got the same one twice, want ResidualQuantizer(quantizer, depth=R) to share it")
    return members


def check_quantizers(quantizers: object) -> None:
    fits = isinstance(quantizers, Sequence) and all(
        hasattr(q, "encode") and hasattr(q, "num_codes") for q in quantizers
    )
    if not fits or not quantizers:
        raise ValueError(f"quantizers: got {brief(quantizers)}, want a sequence of at least one quantizer")


def check_member(i: int, member: object, first: Quantizer, of: str) -> None:
    codebook = _innermost(member)
    projected = isinstance(member, ProjectedQuantizer)
    if (
        not isinstance(codebook, VectorQuantizer | EMAVectorQuantizer)
        or not isinstance(member, Quantizer)
        or codebook.estimator != "straight-through"
    ):
        raise ValueError(
            f"quantizers[{i}]: got {type(member).__name__}, want a VectorQuantizer or EMAVectorQuantizer "
            "with estimator='straight-through', or a ProjectedQuantizer of one: the sum of codes has one "
            "straight-through gradient"
        )
    if isinstance(codebook, EMAVectorQuantizer) and codebook.cosine and not projected:
        raise ValueError(
            f"quantizers[{i}]: got codes of length 1 (cosine=True), want codes of any length: what is left gets "
            "smaller with each depth; a ProjectedQuantizer around it gives them one"
        )
    if (member.num_codes, member.dim) != (first.num_codes, first.dim):
        raise ValueError(
            f"quantizers[{i}]: got {member.num_codes} codes of {member.dim} dimensions, want {first.num_codes} of "
            f"{first.dim} as {of}"
        )


def _innermost(quantizer: object) -> object:
    return quantizer.quantizer if isinstance(quantizer, ProjectedQuantizer) else quantizer


def number_streams(members: list[Quantizer]) -> None:
    """Equal seeds would make all depths draw the same vectors of a batch for k-means and restarts: number them."""
    seeds: list[int] = []
    for member in members:
        if isinstance(codebook := _innermost(member), EMAVectorQuantizer):
            codebook.stream = seeds.count(codebook.seed)
            seeds.append(codebook.seed)
