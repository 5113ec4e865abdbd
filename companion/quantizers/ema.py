"""A codebook that follows its data without gradients: exponential moving averages (chapter 05)."""

import math
import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import (
    check_between,
    check_choice,
    check_codes,
    check_flag,
    check_number,
    check_size,
    check_tensor,
    check_whole,
    checks_values,
    unchecked_values,
)
from companion.quantizers import _processes
from companion.quantizers.base import ESTIMATORS, Quantized, VectorwiseQuantizer, first_codes, rows, working
from companion.quantizers.search import nearest_code


class EMAVectorQuantizer(VectorwiseQuantizer):
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
        decay: γ; a code forgets half of its past in log(1/2) / log(γ) steps. The customary 0.99 suits long trainings: a
            code that the encoder leaves behind falls below the threshold for restarts after 390 steps, at 0.95 after
            77, and until then the first depth of a residual quantizer may use only a few of its codes.
        commitment_weight: β.
        smoothing: ε of the Laplace smoothing.
        init: "k-means" on the first training batch, which replaces whatever the codebook held; "uniform" as in
            ``VectorQuantizer``; or "given", as :meth:`from_codebook` sets it.
        restart_below: a code whose N_k is less than this share of an even one, ΣN/K, is put onto a random vector of the
            batch, with a count at that threshold. 0 turns restarts off. (Dhariwal et al. 2020, section 3.)
        cosine: vectors and codes are scaled to length 1, so that the nearest code is the one at the smallest angle
            (Yu et al. 2022, section 3.2).
        estimator: "straight-through" or "rotation".
        seed: of what is drawn: the first centres, and the vectors for restarts. The members of a residual quantizer
            draw differently also where their seeds are equal.
        frozen: the codebook stays as it is, in training mode too (:meth:`freeze`).

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
        decay: float = 0.95,
        commitment_weight: float = 0.25,
        smoothing: float = 1e-5,
        init: Literal["k-means", "uniform", "given"] = "k-means",
        restart_below: float = 0.02,
        cosine: bool = False,
        estimator: Literal["straight-through", "rotation"] = "straight-through",
        seed: int = 0,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        check_number("decay", decay, least=0, below=1)
        check_number("restart_below", restart_below, least=0, below=1)
        check_number("commitment_weight", commitment_weight, least=0)
        check_number("smoothing", smoothing, least=0)
        check_choice("init", init, ("k-means", "uniform", "given"))
        check_whole("seed", seed, least=0)
        check_flag("cosine", cosine)
        check_flag("frozen", frozen)
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.commitment_weight, self.smoothing = decay, commitment_weight, smoothing
        self.init, self.restart_below, self.cosine = init, restart_below, cosine
        self.estimator, self.seed, self.frozen = estimator, seed, frozen
        self._said = False
        self.stream = 0  # which of the draws with this seed; a residual quantizer numbers its members
        codes = first_codes(num_codes, dim, estimator)
        if init == "given":
            codes = torch.zeros_like(codes)  # until they are
        self.register_buffer("codebook", functional.normalize(codes, dim=1) if cosine else codes)
        self.register_buffer("counts", torch.zeros(num_codes))  # N_k: nothing was seen yet
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # training forwards so far

    @classmethod
    def from_codebook(cls, codebook: Tensor, *, counts: Tensor | None = None, **options: Any) -> Self:
        """A quantizer that starts from codes that are there already, and moves them from where they are.

        A code's inertia is its count N_k. Without ``counts`` each gets an even share of the first training batch, so
        that the codes move at the pace that they have later; k-means never runs.

        Args:
            options: any other argument of the class, such as ``decay`` or ``frozen``.

        Shapes:
            codebook: (K, D), copied; counts: (K,), at least 0, at least one positive.

        Raises:
            ValueError: another shape, a number that is not finite, or ``init`` or a size among the options.
        """
        check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
        if options.get("cosine"):
            _check_lengths("codebook", codebook)
        if not bool(codebook.any()):
            raise ValueError("codebook: got zeros only, want codes")
        if fixed := {"init", "num_codes", "dim"} & options.keys():
            raise ValueError(f"options: got {', '.join(sorted(fixed))}, want none of them: the codebook decides")
        made = cls(*codebook.shape, init="given", **options)
        codes = codebook.detach().to(made.codebook.dtype)
        made.codebook.copy_(functional.normalize(codes, dim=1) if made.cosine else codes)
        if counts is not None:
            check_tensor("counts", counts, shape=(len(codebook),), finite=True)
            if bool((counts < 0).any()) or not bool(counts.any()):
                raise ValueError("counts: got a negative one or only zeros, want at least 0, and at least one positive")
            made.counts.copy_(counts)
        return made.to(codebook.device)

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the codebook as it is, whatever the mode (``train`` undoes ``eval``, and not this); or let it go on."""
        check_flag("frozen", frozen)
        self.frozen = frozen
        return self

    def quantize_rows(self, vectors: Tensor) -> Quantized:  # for example (1024, 64): see VectorwiseQuantizer
        self._say_if_random()
        vectors = self._scaled(vectors)
        indices = self._search(vectors)  # (1024,)
        codes = functional.embedding(indices, self.codebook)  # (1024, 64); a buffer: no gradient goes there
        commitment = functional.mse_loss(vectors, codes)
        z_q = ESTIMATORS[self.estimator](vectors, codes)
        return Quantized(z_q, indices, self.commitment_weight * commitment, {"commitment": commitment})

    @property
    def prepared(self) -> bool:
        """False until there are codes that come from data, or counts for codes that were given."""
        if self.init == "uniform" or self.frozen or not checks_values(self.counts):
            return True
        return int(self.step) > 0 or bool(self.counts.any())

    @torch.no_grad()
    def prepare(self, z: Tensor) -> None:
        """k-means at the first training forward; the counts are then those of that batch, as if it had always been
        seen. Codes that were given stay, and share that batch evenly."""
        vectors = self._scaled(rows(working(z)))
        if self.init == "given":
            self._check_given()
            available = _processes.total(torch.tensor(float(len(vectors)), device=z.device))
            self.counts.fill_(float(available) / self.num_codes)
        else:
            codes, counts = k_means(vectors, self.num_codes, seed=self.seed, stream=self.stream, cosine=self.cosine)
            self.codebook.copy_(codes)
            self.counts.copy_(counts)

    @torch.no_grad()
    def learn(self, z: Tensor, quantized: Quantized) -> None:
        if self.frozen:
            return
        vectors, chosen = self._scaled(rows(working(z))), quantized.indices.flatten()
        with unchecked_values():  # they were looked at before the lookup
            n, s = code_statistics(vectors, chosen, self.num_codes)
            codebook, counts = ema_step(self.codebook, self.counts, n, s, self.decay, self.smoothing)
        self.counts.copy_(counts)
        if self.cosine:
            codebook = torch.where(n[:, None] > 0, functional.normalize(codebook, dim=1), codebook)
        self.codebook.copy_(codebook)
        self._restart(vectors)  # last: a code that was put onto a vector stays there until the next batch
        self.step += 1

    def encode_rows(self, vectors: Tensor) -> Tensor:
        self._say_if_random()
        return self._search(self._scaled(vectors))

    def codes(self, indices: Tensor) -> Tensor:
        return functional.embedding(indices, self.codebook)

    def _say_if_random(self) -> None:
        """Once: before the first training batch there are no codes from data."""
        if self._said or self.init == "uniform" or not checks_values(self.counts):
            return
        if self.init == "given":
            self._check_given()
        elif int(self.step) == 0 and not bool(self.counts.any()):
            later = "it is frozen" if self.frozen else "k-means takes them from the first training batch"
            warnings.warn(f"EMAVectorQuantizer: its codes are still random; {later}", stacklevel=2)
        self._said = True

    def _check_given(self) -> None:
        if not bool(self.codebook.any()):
            raise ValueError(
                "init: got 'given' and no codes, want EMAVectorQuantizer.from_codebook(codes), or a file to load"
            )

    def _restart(self, vectors: Tensor) -> None:
        if number := int(_dead(self.counts, self.restart_below).sum()):
            candidates = _processes.draw(vectors, number, seed=self.seed, stream=self.stream, step=1 + int(self.step))
            with unchecked_values():
                codebook, counts = restart(self.codebook, self.counts, candidates, self.restart_below)
            self.codebook.copy_(codebook)
            self.counts.copy_(counts)

    def _search(self, vectors: Tensor) -> Tensor:
        return (cosine_lookup if self.cosine else nearest_code)(vectors, self.codebook)

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Of length 1 with ``cosine``."""
        return functional.normalize(vectors, dim=1) if self.cosine else vectors


def code_statistics(vectors: Tensor, indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors chose each code, and their sum, over all processes; without an (N, K) matrix of zeros and ones.

    Shapes:
        vectors: (N, D), indices: (N,) int64 → counts (K,) and sums (K, D), in the vectors' dtype.

    Raises:
        ValueError: the shapes do not fit, or an index lies outside 0…K − 1.
    """
    check_size("num_codes", num_codes)
    check_tensor("vectors", vectors, shape=("N", "D"), finite=True)
    check_tensor("indices", indices, shape=(len(vectors),), dtype=torch.int64)
    check_codes("indices", indices, num_codes)
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

    Raises:
        ValueError: the shapes do not fit, or ``decay`` or ``smoothing`` is out of range.
    """
    check_number("decay", decay, least=0, below=1)
    check_number("smoothing", smoothing, least=0)
    check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
    for name, value in (("counts", counts), ("n", n)):
        check_tensor(name, value, shape=(len(codebook),), finite=True)
        check_between(name, value, 0, math.inf)
    check_tensor("s", s, shape=tuple(codebook.shape), finite=True)
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
        ValueError: the shapes do not fit, or there are fewer candidates than dead codes.
    """
    check_number("restart_below", restart_below, least=0, below=1)
    check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
    check_tensor("counts", counts, shape=(len(codebook),), finite=True)
    check_between("counts", counts, 0, math.inf)
    check_tensor("candidates", candidates, finite=True)
    if candidates.ndim != 2 or candidates.shape[1] != codebook.shape[1]:
        raise ValueError(f"candidates: got shape {tuple(candidates.shape)}, want (n, {codebook.shape[1]})")
    dead = _dead(counts, restart_below)
    if len(candidates) < int(dead.sum()):
        raise ValueError(f"candidates: got {len(candidates)}, want one for each of {int(dead.sum())} dead codes")
    codebook, counts, threshold = codebook.clone(), counts.clone(), restart_below * counts.sum() / len(counts)
    codebook[dead] = candidates[: int(dead.sum())].to(codebook.dtype)
    counts[dead] = threshold
    return codebook, counts


def _check_lengths(name: str, vectors: Tensor) -> None:
    if checks_values(vectors) and not bool((vectors.norm(dim=1) > 0).all()):
        raise ValueError(f"{name}: got one of length 0, want vectors with a direction (cosine compares angles)")


def _dead(counts: Tensor, restart_below: float) -> Tensor:
    return counts < restart_below * counts.sum() / len(counts)


def cosine_lookup(z: Tensor, codebook: Tensor) -> Tensor:
    """The index of the code at the smallest angle, whatever the lengths (Yu et al. 2022, section 3.2).

    Of vectors of length 1, ‖z − e‖² = 2 − 2 cos: the nearest code is the one at the smallest angle.

    Shapes:
        z: (N, D), codebook: (K, D), floating point → (N,) int64.

    Raises:
        ValueError: the shapes do not fit, or a number is NaN or infinite.
    """
    for name, value in (("z", z), ("codebook", codebook)):
        check_tensor(name, value, shape=("N", "D"))
    _check_lengths("codebook", codebook)
    return nearest_code(functional.normalize(z, dim=1), functional.normalize(codebook, dim=1))


@torch.no_grad()
def k_means(
    vectors: Tensor, num_codes: int, *, seed: int = 0, stream: int = 0, iterations: int = 20, cosine: bool = False
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (1957/1982) from ``num_codes`` vectors drawn at random, over all processes together.

    A centre that nothing chose stays where it was. It ends early when no vector changes its centre: the centres are
    then the means of what chose them.

    Args:
        seed: of the first centres; ``stream`` tells several draws with one seed apart.

    Shapes:
        vectors: (N, D) → centres (K, D) and how many vectors chose each, (K,).

    Raises:
        ValueError: fewer vectors than centres, or an argument is out of range.
    """
    check_tensor("vectors", vectors, shape=("N", "D"), finite=True)
    check_size("num_codes", num_codes)
    check_size("iterations", iterations)
    check_whole("seed", seed, least=0)
    check_whole("stream", stream, least=0)
    check_flag("cosine", cosine)
    if cosine:
        _check_lengths("vectors", vectors[vectors.norm(dim=1).argmax(keepdim=True)])
    available = int(_processes.total(torch.tensor(len(vectors), device=vectors.device)))
    if available < num_codes:
        raise ValueError(
            f"z: got {available} vectors for k-means with {num_codes} codes, want at least as many in the "
            "first training batch: a larger batch, fewer codes, or init='uniform'"
        )
    centres = _processes.draw(vectors, num_codes, seed=seed, stream=stream, step=0)
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
