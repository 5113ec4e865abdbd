"""A codebook that follows its data without gradients: exponential moving averages (chapter 05).

The whole method, for vectors z (N, D), a codebook (K, D), and the state counts (K,) and sums (K, D):

    indices = nearest_code(z, codebook)                    # (N,): the search, in the old codebook
    codes = codebook[indices]                              # (N, D): the lookup; the codebook is no parameter
    commitment_loss = (z - codes).square().mean()          # moves the vectors to the codes
    z_q = z + (codes - z).detach()                         # straight-through: the codes, with the gradient of z

    n = torch.bincount(indices, minlength=K)               # (K,): how many vectors chose each code
    s = torch.zeros(K, D).index_add(0, indices, z)         # (K, D): their sum
    counts = decay * counts + (1 - decay) * n              # the running count; both start from k-means on z
    sums = decay * sums + (1 - decay) * s                  # the running sum
    codebook = sums / counts[:, None]                      # each code is the running mean of its vectors

``EMAVectorQuantizer.quantize`` below is the first part, ``EMAVectorQuantizer.update`` the second, without storing sums.
Where the first codes come from, and what keeps them as they are, is in ``_codes_from_data.py``.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import (
    check_between,
    check_choice,
    check_flag,
    check_number,
    check_tensor,
    check_whole,
    unchecked_values,
)
from companion.quantizers import _processes
from companion.quantizers._codes_from_data import CodesFromData
from companion.quantizers.base import Quantized, looked_up, to_latents, to_positions, to_vectors
from companion.quantizers.estimators import ESTIMATORS
from companion.quantizers.k_means import code_statistics
from companion.quantizers.restarts import restart_dead
from companion.quantizers.search import cosine_lookup, nearest_code
from companion.quantizers.vector import first_codes


class EMAVectorQuantizer(CodesFromData):
    """A vector quantizer whose codes follow the running mean of the vectors that choose them.

    The best place for a code is the mean of its vectors. No gradient has to search for it. But a batch has only a few
    of them, and the encoder moves them while it learns. So the mean is taken over many batches, and an old batch counts
    less than a new one (van den Oord et al. 2017, appendix A.1, equations 6 to 8; :func:`ema_step`).

    The state is in buffers, which are saved with the model and have no gradient:

    ========  ======  =======================================  ========================================================
    buffer    shape   what it is                               changes
    ========  ======  =======================================  ========================================================
    codebook  (K, D)  e_k, the codes                           k-means on the first batch, then each update and restart
    counts    (K,)    N_k, the running count of each code      set by k-means, then as the codebook
    step      ()      number of updates; seeds restarts        each update
    ========  ======  =======================================  ========================================================

    The running sum of a code is not stored: it is N_k e_k.

    One forward in training mode is one update, after the lookup. With gradient accumulation, put the forwards of a step
    into ``with one_update(model):`` (:func:`one_update`), and they are one. A forward that is computed again for
    checkpointed activations would count twice. A code that no vector of the batch
    chose stays as it is, to the bit, unless it is restarted. With several processes (``torch.distributed``) the
    statistics are those of all of them together, and all have the same codebook.

    What stops the updates is eval mode, or :meth:`freeze`. ``model.requires_grad_(False)`` does not, since it is about
    parameters and the codebook is a buffer. In half precision it refuses to learn: counts overflow in float16, and
    small steps are lost in bfloat16. Mixed precision (autocast) keeps it in float32.

    Args:
        num_codes: K.
        dim: D, the length of a code.
        decay: γ; a code forgets half of its past in log(1/2) / log(γ) steps. A code with an even share that no vector
            chooses any more is restarted after log(restart_below) / log(γ) steps: 77 with the defaults, 390 at the
            customary γ = 0.99.
        commitment_weight: β.
        smoothing: ε of the Laplace smoothing.
        init: "k-means" on the first training batch, which replaces whatever the codebook held; "uniform" as in
            ``VectorQuantizer``; or "given", as :meth:`from_codebook` sets it. A compiled model runs no k-means: run the
            first batch before ``torch.compile``.
        restart_below: a code with less than this part of an even share, ΣN/K, is put onto a random vector of the batch
            (:func:`restart`). 0 turns restarts off. With ``init="uniform"`` the first batch restarts every code that it
            does not choose, since all counts begin at 0.
        cosine: vectors and codes are scaled to length 1, so that the nearest code is the one at the smallest angle
            (Yu et al. 2022, section 3.2). The codes are scaled after each update. So the running sum is N_k long. The
            sum of N_k vectors of several directions would be shorter: with it the past would weigh less, and the codes
            would turn faster.
        estimator: "straight-through" or "rotation".
        seed: of the first centres of k-means, and of the vectors for restarts. Members of a residual quantizer with
            equal seeds draw different ones.
        frozen: the codebook stays as it is, in training mode too (:meth:`freeze`).

    Shapes:
        z: (B, D, *spatial) → ``Quantized`` with z_q (B, D, *spatial), indices (B, *spatial) and the term "commitment".

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or holds NaN or infinity (the codebook is then
            unchanged); the first training batch has fewer than K vectors for k-means; or it is in half precision and
            would learn.
    """

    codebook: Tensor
    counts: Tensor
    step: Tensor
    # For ``Configured``: settings that nobody may assign later, and an attribute that a residual quantizer assigns.
    _as_built = ("cosine", "init")
    _changeable = ("stream",)

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
        check_choice("estimator", estimator, ESTIMATORS)
        check_whole("seed", seed, least=0)
        check_flag("cosine", cosine)
        check_flag("frozen", frozen)
        self.num_codes, self.dim = num_codes, dim
        self.decay, self.commitment_weight, self.smoothing = decay, commitment_weight, smoothing
        self.init, self.restart_below, self.cosine = init, restart_below, cosine
        self.estimator, self.seed, self.frozen = estimator, seed, frozen
        self._warned = False
        self.stream = 0  # a residual quantizer numbers its members here, so that equal seeds draw differently
        codes = first_codes(num_codes, dim)
        if init == "given":
            codes = torch.zeros_like(codes)  # until from_codebook or a file fills them in
        self.register_buffer("codebook", functional.normalize(codes, dim=1) if cosine else codes)
        self.register_buffer("counts", torch.zeros(num_codes))  # N_k: nothing was seen yet
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))  # updates so far

    def quantize(self, z: Tensor) -> Quantized:
        """Called by ``forward`` (in ``base.py``). Shapes beside the lines are those of K = 512 and z (16, 64, 8, 8)."""
        self._warn_if_untrained()
        vectors = self._scaled(to_vectors(z))  # (1024, 64): one for each position
        indices = self._search(vectors)  # (1024,)
        codes = functional.embedding(indices, self.codebook)  # (1024, 64); a buffer: no gradient goes there
        commitment = functional.mse_loss(vectors, codes)
        z_q = ESTIMATORS[self.estimator](vectors, codes)  # (1024, 64): the values of the codes, the gradient of vectors
        loss, losses = self.commitment_weight * commitment, {"commitment": commitment}
        return Quantized(to_latents(z_q, like=z), to_positions(indices, like=z), loss, losses)  # (16, 64, 8, 8) again

    @torch.no_grad()
    def update(self, z: Tensor, quantized: Quantized) -> None:
        """One step of the moving average, from the vectors that were just looked up."""
        vectors, indices = self._scaled(to_vectors(z)), quantized.indices.flatten()  # (1024, 64), (1024,)
        if self.frozen or _processes.total_number(len(vectors), z.device) == 0:
            return
        self._check_precision()
        with unchecked_values():  # the latents were checked before the lookup
            n, s = code_statistics(vectors, indices, self.num_codes)  # (512,), (512, 64): of all processes
            codebook, counts = ema_step(self.codebook, self.counts, n, s, self.decay, self.smoothing)
            if self.cosine:
                codebook = self._of_length_one(codebook, n)
            codebook, counts = self._restarted(codebook, counts, vectors)  # last, so that the step does not undo it
        self.codebook.copy_(codebook)
        self.counts.copy_(counts)
        self.step.add_(1)

    def encode_vectors(self, z: Tensor) -> Tensor:
        self._warn_if_untrained()
        return self._search(self._scaled(z))

    def lookup(self, indices: Tensor) -> Tensor:
        self._warn_if_untrained()
        return looked_up(indices, self.codebook)

    def _search(self, vectors: Tensor) -> Tensor:
        return (cosine_lookup if self.cosine else nearest_code)(vectors, self.codebook)

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Of length 1 with ``cosine``."""
        return functional.normalize(vectors, dim=1) if self.cosine else vectors

    def _of_length_one(self, codebook: Tensor, n: Tensor) -> Tensor:
        """Scale the codes that moved. A code whose vectors cancel to 0 has no direction: it stays as it was."""
        moved = (n > 0) & codebook.any(1)
        return torch.where(moved[:, None], functional.normalize(codebook, dim=1), self.codebook)

    def _restarted(self, codebook: Tensor, counts: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        draw = self.seed, self.stream, self.step
        return restart_dead(codebook, counts, vectors, self.restart_below, self.cosine, *draw)


def ema_step(
    codebook: Tensor, counts: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The codes and their counts after one step of the moving average; nothing is written in place.

    Of the n_k vectors of sum s_k that chose code k in this batch, equations 6 to 8 of van den Oord et al. 2017 make

        N′_k = γ N_k + (1 − γ) n_k        the running count
        m′_k = γ m_k + (1 − γ) s_k        the running sum
        e′_k = m′_k / N′_k                the code, their mean

    The sum need not be stored, since m_k = N_k e_k: then N′ e′ = γ N e + (1 − γ) s. With γ N = N′ − (1 − γ) n this is

        e′_k = e_k + (1 − γ) n_k / N′_k · (s_k/n_k − e_k)

    So a code goes a part of the way to the mean of the vectors that chose it. (It is also a step of SGD on the summed
    codebook loss, with the rate (1 − γ)/(2 N′_k).)

    Laplace smoothing: Ñ_k = (N′_k + ε)/(ΣN′ + Kε) · ΣN′ stands for N′_k in the last line. (Elsewhere it divides m′_k,
    and avoids a division by zero; here only codes with n_k > 0 move.) Ñ_k can be smaller than N′_k, so the part is cut
    off at 1.

    Args:
        decay: γ. smoothing: ε.

    Shapes:
        codebook (K, D), counts (K,): before the step; n (K,), s (K, D): what :func:`code_statistics` gives → codebook
        (K, D), counts (K,).

    Raises:
        ValueError: the shapes do not fit, or ``decay`` or ``smoothing`` is out of range.
    """
    _check_step(codebook, counts, n, s, decay, smoothing)
    new_counts = (decay * counts).add_(n, alpha=1 - decay)  # (K,): N′
    total = new_counts.sum()
    smoothed = (new_counts + smoothing) / (total + len(counts) * smoothing) * total  # (K,): Ñ
    rate = ((1 - decay) * n / smoothed).clamp(max=1)[:, None]  # (K, 1): how far to go
    mean = s / n[:, None]  # (K, D): where to; NaN where no vector chose the code
    moved = codebook + rate * (mean - codebook)
    return torch.where(n[:, None] > 0, moved, codebook).to(codebook.dtype), new_counts


def _check_step(codebook: Tensor, counts: Tensor, n: Tensor, s: Tensor, decay: float, smoothing: float) -> None:
    check_number("decay", decay, least=0, below=1)
    check_number("smoothing", smoothing, least=0)
    check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
    for name, value in (("counts", counts), ("n", n)):
        check_tensor(name, value, shape=(len(codebook),), finite=True)
        check_between(name, value, 0, math.inf)
    check_tensor("s", s, shape=tuple(codebook.shape), finite=True)
