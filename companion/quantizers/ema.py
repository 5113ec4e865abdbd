"""A codebook that follows its data without gradients: exponential moving averages (chapter 05)."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from companion.quantizers import _processes
from companion.quantizers.base import (
    ESTIMATORS,
    Quantized,
    Quantizer,
    check_indices,
    check_latents,
    first_codes,
    grid,
    rows,
    working,
)
from companion.quantizers.search import nearest_code


class EMAVectorQuantizer(Quantizer):
    """Vector quantiser whose codes follow the running mean of the vectors they attract.

    Each training forward first looks up, and then moves every code that was chosen (van den Oord et al. 2017, appendix
    A.1). With n_k vectors choosing code k and s_k their sum:

        N_k ← γ N_k + (1 − γ) n_k,      e_k ← e_k + (1 − γ)/N_k · (s_k − n_k e_k).

    The paper keeps sums m_k beside the counts and divides, e_k = m_k/N_k; with m_k = N_k e_k that is the same line.
    Kept in this form there are no sums that could disagree with the codes, and a code that nothing chose stays as it
    is, to the bit. It is also a step of SGD on the summed codebook loss, with a rate of its own for each code,
    η_k = (1 − γ)/(2 N_k). Laplace smoothing enters where N_k divides: Ñ_k = (N_k + ε)/(ΣN + Kε)·ΣN, which keeps a code
    that is chosen for the first time from a division by next to nothing.

    With several processes (``torch.distributed``) the statistics are those of all of them together: the codebooks stay
    equal, and equal to that of one process that sees the joined batch.

    One training forward is one update. Under gradient accumulation each micro-batch is one (A of them forget by γ^A);
    a forward that is computed again for checkpointed activations would count twice.

    Args:
        num_codes: K.
        dim: D, the length of a code.
        decay: γ; a code forgets half of its past in log(1/2) / log(γ) steps.
        commitment_weight: β.
        smoothing: ε of the Laplace smoothing.
        init: "k-means" on the first training batch, or "uniform" as in ``VectorQuantizer``.
        restart_below: a code whose N_k is less than this share of an even one, ΣN/K, is put onto a random vector of the
            batch, with a count at that threshold. 0 turns restarts off. (Dhariwal et al. 2020, section 3.)
        cosine: vectors and codes are scaled to length 1, so that the nearest code is the one at the smallest angle
            (Yu et al. 2022, section 3.2).
        estimator: "straight-through" or "rotation".
        seed: of what is drawn: the first centres, and the vectors for restarts.

    Shapes:
        z: (B, D, *spatial) → ``Quantized`` with z_q (B, D, *spatial), indices (B, *spatial) and the term "commitment".

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or holds NaN or infinity (nothing is learnt
            then); the first training batch has fewer than K vectors for k-means.
    """

    codebook: Tensor
    counts: Tensor
    step: Tensor

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        decay: float = 0.99,
        commitment_weight: float = 0.25,
        smoothing: float = 1e-5,
        init: Literal["k-means", "uniform"] = "k-means",
        restart_below: float = 0.02,
        cosine: bool = False,
        estimator: Literal["straight-through", "rotation"] = "straight-through",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, share in (("decay", decay), ("restart_below", restart_below)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}: got {share}, want at least 0 and less than 1")
        for name, weight in (("commitment_weight", commitment_weight), ("smoothing", smoothing)):
            if not weight >= 0:
                raise ValueError(f"{name}: got {weight}, want at least 0")
        if init not in ("k-means", "uniform"):
            raise ValueError(f"init: got {init!r}, want 'k-means' or 'uniform'")
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.commitment_weight, self.smoothing = decay, commitment_weight, smoothing
        self.init, self.restart_below, self.cosine = init, restart_below, cosine
        self.estimator, self.seed = estimator, seed
        codes = first_codes(num_codes, dim, estimator)
        self.register_buffer("codebook", functional.normalize(codes, dim=1) if cosine else codes)
        self.register_buffer("counts", torch.zeros(num_codes))  # N_k: nothing was seen yet
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # training forwards so far

    def quantize(self, z: Tensor) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            vectors = self._vectors(z)  # (N, D)
            indices = self._lookup(vectors)
            codes = functional.embedding(indices, self.codebook)
            commitment = functional.mse_loss(vectors, codes)  # the codes are a buffer: no gradient goes there
            z_q = ESTIMATORS[self.estimator](vectors, codes)
        shape = z.shape[:1] + z.shape[2:]
        return Quantized(
            grid(z_q, shape).to(z.dtype),
            indices.reshape(shape),
            self.commitment_weight * commitment,
            {"commitment": commitment},
        )

    def encode(self, z: Tensor) -> Tensor:
        check_latents(z, self.dim)
        with torch.no_grad():
            return self._lookup(self._vectors(z)).reshape(z.shape[:1] + z.shape[2:])

    def decode(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.num_codes)
        return functional.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def prepare(self, z: Tensor) -> None:
        """k-means at the first training forward; the counts are then those of that batch, as if it had always been
        seen."""
        if self.init == "k-means" and int(self.step) == 0 and not bool(self.counts.any()):
            vectors = self._vectors(z)
            codes, counts = k_means(vectors, self.num_codes, seed=self.seed, cosine=self.cosine)
            self.codebook.copy_(codes)
            self.counts.copy_(counts)

    @torch.no_grad()
    def learn(self, z: Tensor, indices: Tensor) -> None:
        vectors, chosen = self._vectors(z), indices.flatten()
        n, s = code_statistics(vectors, chosen, self.num_codes)
        codebook, counts = ema_step(self.codebook, self.counts, n, s, self.decay, self.smoothing)
        self.counts.copy_(counts)
        if self.cosine:
            codebook = torch.where(n[:, None] > 0, functional.normalize(codebook, dim=1), codebook)
        self.codebook.copy_(codebook)
        self._restart(vectors)  # after the codes have moved: what is put now is not moved before it was looked up once
        self.step += 1

    def _restart(self, vectors: Tensor) -> None:
        if number := int(_dead(self.counts, self.restart_below).sum()):
            candidates = _processes.draw(vectors, number, seed=self.seed, step=1 + int(self.step))
            codebook, counts = restart(self.codebook, self.counts, candidates, self.restart_below)
            self.codebook.copy_(codebook)
            self.counts.copy_(counts)

    def _lookup(self, vectors: Tensor) -> Tensor:
        return (cosine_lookup if self.cosine else nearest_code)(vectors, self.codebook)

    def _vectors(self, z: Tensor) -> Tensor:
        """(B, D, *spatial) → (N, D), in the precision to compute in, of length 1 with ``cosine``."""
        vectors = rows(working(z))
        return functional.normalize(vectors, dim=1) if self.cosine else vectors


def code_statistics(vectors: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sum, over all processes; without an (N, K) matrix of zeros and ones.

    Shapes:
        vectors: (N, D), indices: (N,) int64 → counts (K,) and sums (K, D), in the vectors' dtype.
    """
    counts = torch.bincount(indices, minlength=num_codes).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, indices, vectors)
    return _processes.total(counts), _processes.total(sums)


def ema_step(
    codebook: Tensor, counts: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The codes and their counts after one step of the moving average; nothing is written in place.

    N′_k = γN_k + (1 − γ)n_k and e_k + (1 − γ)/Ñ_k · (s_k − n_k e_k), where Ñ_k = (N′_k + ε)/(ΣN′ + Kε) · ΣN′. No step
    goes beyond the mean s_k/n_k, and a code with n_k = 0 stays as it is (van den Oord et al. 2017, equations 6 to 8,
    with m_k = N_k e_k).

    Args:
        decay: γ. smoothing: ε.

    Shapes:
        codebook (K, D), counts (K,): before the step; n (K,), s (K, D): what :func:`code_statistics` gives → codebook
        (K, D), counts (K,).
    """
    counts = (decay * counts).add_(n, alpha=1 - decay)
    total = counts.sum()
    smoothed = (counts + smoothing) / (total + len(counts) * smoothing) * total
    used = n.nonzero()[:, 0]  # the others are not touched
    rate = ((1 - decay) * n / smoothed)[used, None].clamp(max=1)  # of the way to the batch's mean
    mean, before = s[used] / n[used, None], codebook[used]
    moved = (before + rate * (mean - before)).to(codebook.dtype)
    return codebook.index_copy(0, used, moved), counts


def restart(codebook: Tensor, counts: Tensor, candidates: Tensor, restart_below: float) -> tuple[Tensor, Tensor]:
    """Dead codes are put onto candidates, the first onto the first; their counts are set to the threshold.

    Dead is a code whose N_k is less than ``restart_below`` of an even share, ΣN/K (Dhariwal et al. 2020, section 3,
    with a share in place of a number of vectors).

    Shapes:
        codebook (K, D), counts (K,), candidates (at least as many as codes are dead, D) → codebook (K, D), counts (K,).

    Raises:
        ValueError: there are fewer candidates than dead codes.
    """
    dead = _dead(counts, restart_below)
    if len(candidates) < int(dead.sum()):
        raise ValueError(f"candidates: got {len(candidates)}, want one for each of {int(dead.sum())} dead codes")
    codebook, counts, threshold = codebook.clone(), counts.clone(), restart_below * counts.sum() / len(counts)
    codebook[dead] = candidates[: int(dead.sum())].to(codebook.dtype)
    counts[dead] = threshold
    return codebook, counts


def _dead(counts: Tensor, restart_below: float) -> Tensor:
    return counts < restart_below * counts.sum() / len(counts)


def cosine_lookup(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code at the smallest angle, whatever the lengths (Yu et al. 2022, section 3.2).

    Of vectors of length 1, ‖z − e‖² = 2 − 2 cos: the nearest code is the one at the smallest angle.

    Shapes:
        z: (N, D), codebook: (K, D), floating point → (N,) int64.
    """
    return nearest_code(functional.normalize(z, dim=1), functional.normalize(codebook, dim=1))


@torch.no_grad()
def k_means(
    vectors: Tensor, num_codes: int, *, seed: int = 0, iterations: int = 20, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (1957/1982) from ``num_codes`` vectors drawn at random, over all processes together.

    A centre that nothing chose stays where it was. It ends early when no vector changes its centre: the centres are
    then the means of what chose them.

    Shapes:
        vectors: (N, D) → centres (K, D) and how many vectors chose each, (K,).

    Raises:
        ValueError: fewer vectors than centres.
    """
    available = int(_processes.total(torch.tensor(len(vectors), device=vectors.device)))
    if available < num_codes:
        raise ValueError(
            f"z: got {available} vectors for k-means with {num_codes} codes, want at least as many in the first "
            f"training "
            "batch: a larger batch, fewer codes, or init='uniform'"
        )
    centres = _processes.draw(vectors, num_codes, seed=seed, step=0)
    indices = nearest_code(vectors, centres)
    for _ in range(iterations):
        counts, sums = code_statistics(vectors, indices, num_codes)
        means = sums / counts.clamp(min=1)[:, None]
        if cosine:
            means = functional.normalize(means, dim=1)
        centres = torch.where(counts[:, None] > 0, means, centres)
        before, indices = indices, nearest_code(vectors, centres)
        if int(_processes.total((indices != before).sum())) == 0:
            break
    return centres, code_statistics(vectors, indices, num_codes)[0]
