"""Residual quantisation (chapter 06): each quantizer quantises what those before it left."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.metrics import CodeUsage, nominal_bits, perplexity
from companion.quantizers.base import Quantized, Quantizer, check_indices, check_latents, straight_through, working
from companion.quantizers.ema import EMAVectorQuantizer
from companion.quantizers.vector import VectorQuantizer


@torch.no_grad()
def residual_encode(z: Tensor, quantizers: Sequence[Quantizer]) -> Tensor:
    """One index a depth, each of the code nearest to what the codes before it left (Lee et al. 2022, equations 3, 4).

    Greedy: the first code is the nearest to z, whatever comes after it. Another stack may have a sum nearer to z.

    Shapes:
        z: (B, D, *spatial); quantizers: R of them, one a depth → (B, *spatial, R) int64.

    Raises:
        ValueError: there is no quantizer, or ``z`` does not fit them.
    """
    if not quantizers:
        raise ValueError("quantizers: got none, want one a depth")
    residual, indices = z, []
    for quantizer in quantizers:
        indices.append(quantizer.encode(residual))
        residual = residual - quantizer.decode(indices[-1])
    return torch.stack(indices, dim=-1)


def decode_to_depth(indices: Tensor, quantizers: Sequence[Quantizer], depth: int) -> Tensor:
    """The sum of the first ``depth`` codes of every stack: from coarse (1) to fine (R).

    Shapes:
        indices: (B, *spatial, R) int64; quantizers: R of them, one a depth → (B, D, *spatial).

    Raises:
        ValueError: the last axis is not R long, an index is no code, or ``depth`` is not between 1 and R.
    """
    if not 1 <= depth <= len(quantizers):
        raise ValueError(f"depth: got {depth}, want 1 to {len(quantizers)}")
    if indices.ndim < 2 or indices.shape[-1] != len(quantizers):
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, want (B, *spatial, {len(quantizers)})")
    check_indices(indices, quantizers[0].num_codes)
    codes = [quantizer.decode(indices[..., r]) for r, quantizer in enumerate(quantizers[:depth])]
    return torch.stack(codes).sum(0)


def rate_bits(indices: Tensor, num_codes: int) -> dict[str, float]:
    """What one position's stack of codes costs, in bits, by three ways of writing it down.

    "nominal": R·log₂K. "entropy": Σ_r H(k_r), each depth with the shares that its own codes have. "joint":
    H(k_1, …, k_R), the shares of whole stacks. Each is at most the one before. The shares are those of the indices
    given: with fewer positions than stacks there could be, "joint" comes out too small.

    Shapes:
        indices: (N, *spatial, R) int64; for a plain quantizer R = 1.

    Raises:
        ValueError: not int64, no indices, or an index outside 0…K − 1.
    """
    stacks = indices.reshape(-1, indices.shape[-1])  # (N·T, R)
    counts = torch.unique(stacks, dim=0, return_counts=True)[1]
    return {
        "nominal": nominal_bits(num_codes, (stacks.shape[1],)),
        "entropy": sum(CodeUsage(num_codes).update(one).entropy_bits for one in stacks.unbind(1)),
        "joint": math.log2(perplexity(counts)),
    }


@dataclass(frozen=True)
class ResidualQuantized(Quantized):
    """What a residual quantizer returns: ``indices`` (B, *spatial, R), and besides

    Shapes:
        depths: what each depth gave, R of them; their ``losses`` are means over the images that used the depth.
        mask: (B, R) bool, which depths each image used. All of them, except under depth dropout: what a depth would
            have chosen for the others still stands in ``indices``, so that every index is a code.
    """

    depths: tuple[Quantized, ...]
    mask: Tensor


class ResidualQuantizer(Quantizer):
    """z ≈ e₁ + … + e_R: depth r quantises the residual z − (e₁ + … + e_{r−1}) (Lee et al. 2022, equations 3 to 5).

    The residual is detached from the codes before it, so each depth's losses move that depth's codes and the latents,
    and no other codebook. The gradient at z is that of z_q, once (straight-through over the whole sum). Losses are
    **summed** over the depths: each codebook learns at the pace it would have alone, whatever R (their mean would
    divide every codebook's step by R). So ``losses["commitment"]`` is Σ_r ‖z_r − sg[e_r]‖², z_r the residual before
    depth r.

    Args:
        quantizers: R vector quantizers with straight-through gradient, of equal ``num_codes`` and ``dim``; or one of
            them, shared by ``depth`` depths, which then learns once, from the residuals of all depths together.
        depth: R, for a shared quantizer.
        depth_dropout: in training, the probability for each image to use only its first r depths, r uniform in 1…R
            (Zeghidour et al. 2021, section III-C; per image as in Kumar et al. 2023).

    Shapes:
        z: (B, D, *spatial) → ``ResidualQuantized``; indices (B, *spatial, R).

    Raises:
        ValueError: the quantizers do not fit together, an argument is out of range, or ``z`` is not as it should be.
    """

    def __init__(
        self,
        quantizers: Quantizer | Sequence[Quantizer],
        *,
        depth: int | None = None,
        depth_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shared = isinstance(quantizers, Quantizer)
        members = [quantizers] if isinstance(quantizers, Quantizer) else list(quantizers)
        if shared != (depth is not None) or not members or (depth is not None and depth < 1):
            raise ValueError(
                f"depth: got {depth} with {'one quantizer' if shared else f'a list of {len(members)}'}, want a number "
                f"from 1 "
                "for one shared quantizer, and None for a list of at least one"
            )
        for i, member in enumerate(members):
            if not isinstance(member, VectorQuantizer | EMAVectorQuantizer) or member.estimator != "straight-through":
                raise ValueError(
                    f"quantizers[{i}]: got {type(member).__name__}, want a VectorQuantizer or EMAVectorQuantizer "
                    "with estimator='straight-through': the sum of codes has one straight-through gradient"
                )
            if (member.num_codes, member.dim) != (members[0].num_codes, members[0].dim):
                raise ValueError(
                    f"quantizers[{i}]: got {member.num_codes} codes of {member.dim} dimensions, want "
                    f"{members[0].num_codes} of {members[0].dim} as the first has"
                )
        if len({id(member) for member in members}) < len(members):
            raise ValueError(
                "quantizers: got the same one twice, want ResidualQuantizer(quantizer, depth=R) to share it"
            )
        if not 0 <= depth_dropout <= 1:
            raise ValueError(f"depth_dropout: got {depth_dropout}, want 0 to 1")
        self.quantizers = nn.ModuleList(members)
        self.num_codes, self.dim = members[0].num_codes, members[0].dim
        self.depth = depth or len(members)
        self.depth_dropout = depth_dropout

    def forward(self, z: Tensor) -> ResidualQuantized:
        check_latents(z, self.dim)
        mask = self._draw_mask(len(z), z.device)
        residual = working(z)
        z_q = torch.zeros_like(residual)
        depths: list[Quantized] = []
        indices: list[Tensor] = []
        seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.quantizers]
        for r in range(self.depth):
            member, used = self._member(r), mask[:, r]
            part = residual if bool(used.all()) else residual[used]
            if self.training:
                member.prepare(part.detach())
            out = member.quantize(part)
            chosen, codes = out.indices, out.z_q.detach()
            if len(part) < len(residual):  # what the depth would choose for the images that do not use it
                everywhere = chosen.new_empty(len(z), *chosen.shape[1:])
                everywhere[used], everywhere[~used] = chosen, member.encode(residual[~used].detach())
                codes = torch.zeros_like(residual).index_put((used,), codes)  # nothing is added there
                chosen = everywhere
            seen[r % len(seen)].append((part.detach(), out.indices))
            depths.append(out)
            indices.append(chosen)
            z_q = z_q + codes
            residual = residual - codes  # codes are constants here: no gradient from deeper losses to this codebook
        if self.training:
            for member, pairs in zip(self._members(), seen, strict=True):
                latents, chosen_rows = zip(*pairs, strict=True)
                once = len(pairs) == 1  # a codebook of its own: nothing to put together, and nothing to copy
                member.learn(*(pairs[0] if once else (torch.cat(latents), torch.cat(chosen_rows))))
        losses = {name: torch.stack([out.losses[name] for out in depths]).sum() for name in depths[0].losses}
        return ResidualQuantized(
            straight_through(z, z_q.to(z.dtype)),
            torch.stack(indices, dim=-1),
            torch.stack([out.loss for out in depths]).sum(),
            losses,
            tuple(depths),
            mask,
        )

    def quantize(self, z: Tensor) -> Quantized:
        """As in eval mode: every depth, and nothing is learnt."""
        training, self.training = self.training, False
        try:
            return self(z)  # type: ignore[no-any-return]
        finally:
            self.training = training

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        return residual_encode(working(z), self._by_depth())

    def decode(self, indices: Tensor, *, depth: int | None = None) -> Tensor:
        """Indices (B, *spatial, R) → the sum of their codes, of the first ``depth`` depths only if given.

        Raises:
            ValueError: the last axis is not R long, an index is no code, or ``depth`` is not between 1 and R.
        """
        return decode_to_depth(indices, self._by_depth(), self.depth if depth is None else depth)

    def _draw_mask(self, images: int, device: torch.device) -> Tensor:
        """(B, R): which depths each image uses. The first is always used."""
        used = torch.full((images,), self.depth, device=device)
        if self.training and self.depth_dropout:
            fewer = torch.randint(1, self.depth + 1, (images,), device=device)
            used = torch.where(torch.rand(images, device=device) < self.depth_dropout, fewer, used)
            used[0] = self.depth  # so that no depth is without an image
        return torch.arange(self.depth, device=device) < used[:, None]

    def _member(self, r: int) -> Quantizer:
        member = self.quantizers[r if len(self.quantizers) > 1 else 0]
        assert isinstance(member, Quantizer)
        return member

    def _by_depth(self) -> list[Quantizer]:
        return [self._member(r) for r in range(self.depth)]

    def _members(self) -> list[Quantizer]:
        return [self._member(r) for r in range(len(self.quantizers))]
