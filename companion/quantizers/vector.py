"""Vector quantisation with a codebook that is learnt by gradient descent (chapters 03 and 04).

The whole method, for vectors z (N, D) and a codebook of K codes, (K, D):

    distances = (z[:, None] - codebook).square().sum(-1)   # (N, K): from each vector to each code
    indices = distances.argmin(1)                          # (N,): the search
    codes = codebook[indices]                              # (N, D): the lookup
    codebook_loss = (z.detach() - codes).square().mean()   # moves the codes to the vectors
    commitment_loss = (z - codes.detach()).square().mean() # moves the vectors to the codes
    loss = codebook_loss + commitment_weight * commitment_loss
    z_q = z + (codes - z).detach()                         # straight-through: the codes, with the gradient of z

``VectorQuantizer.quantize`` below is these lines, with a search that needs no (N, K) table.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import check_choice, check_number, check_same_shape, check_size, check_tensor
from companion.quantizers.base import Quantized, VectorwiseQuantizer, looked_up, to_latents, to_positions, to_vectors
from companion.quantizers.estimators import ESTIMATORS
from companion.quantizers.search import nearest_code


class VectorQuantizer(VectorwiseQuantizer):
    """Each vector is replaced by the nearest of K codes, and the codes are parameters (van den Oord et al. 2017).

    ``loss`` is ‖sg[z] − z_q‖² + β ‖z − sg[z_q]‖² (equation 3), each a mean over positions and dimensions. The first
    term moves the codes, the second the latents, and β weighs the second only. The reconstruction's gradient passes
    from z_q to z and never reaches the codebook.

    Args:
        num_codes: K.
        dim: D.
        commitment_weight: β.
        estimator: how the gradient passes from z_q to z: "straight-through", or "rotation" (:func:`rotation_trick`).

    The codes start as U(−√(3/D), √(3/D)): variance 1/D in each dimension, so that the mean of ‖e‖² is 1.

    Shapes:
        z: (B, D, *spatial) → ``Quantized`` with z_q (B, D, *spatial) and indices (B, *spatial). Under autocast and for
        latents in half precision, search and losses are in float32.

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or holds NaN or infinity (the codebook is
            then unchanged).
    """

    def __init__(
        self,
        num_codes: int,
        dim: int,
        *,
        commitment_weight: float = 0.25,
        estimator: Literal["straight-through", "rotation"] = "straight-through",
    ) -> None:
        super().__init__()
        check_number("commitment_weight", commitment_weight, least=0)
        check_choice("estimator", estimator, ESTIMATORS)
        self.num_codes, self.dim = num_codes, dim
        self.commitment_weight = commitment_weight
        self.estimator = estimator
        self.codebook = nn.Parameter(first_codes(num_codes, dim))  # (K, D)

    def quantize(self, z: Tensor) -> Quantized:
        """Called by ``forward`` (in ``base.py``). Shapes beside the lines are those of K = 512 and z (16, 64, 8, 8)."""
        vectors = to_vectors(z)  # (1024, 64): one for each position
        indices = nearest_code(vectors, self.codebook)  # (1024,): the search
        codes = functional.embedding(indices, self.codebook)  # (1024, 64): the lookup, with a gradient to the codebook
        # Of the codes themselves: past the straight-through estimator, nothing leads from z_q to the codebook.
        codebook_loss, commitment_loss = vq_losses(vectors, codes)
        loss = codebook_loss + self.commitment_weight * commitment_loss
        z_q = ESTIMATORS[self.estimator](vectors, codes)  # (1024, 64): the values of the codes, the gradient of vectors
        losses = {"codebook": codebook_loss, "commitment": commitment_loss}
        return Quantized(to_latents(z_q, like=z), to_positions(indices, like=z), loss, losses)  # (16, 64, 8, 8) again

    def encode_vectors(self, z: Tensor) -> Tensor:
        return nearest_code(z, self.codebook)

    def lookup(self, indices: Tensor) -> Tensor:
        return looked_up(indices, self.codebook)


def vq_losses(z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms that pull latents and codes together: one value, two gradients (van den Oord et al. 2017, eq. 3).

    The codebook loss ‖sg[z] − z_q‖² moves the codes only, the commitment loss ‖z − sg[z_q]‖² the latents only.
    Both are means over positions and dimensions, and unweighted.

    Shapes:
        z, z_q: the same shape → (codebook loss, commitment loss), both 0-dim. z_q are the codes as they were looked up:
        those of ``Quantized.z_q`` have no gradient to the codebook.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).
    """
    check_tensor("z", z)
    check_tensor("z_q", z_q)
    check_same_shape("z_q", z_q, "z", z)
    return (z.detach() - z_q).square().mean(), (z - z_q.detach()).square().mean()


def first_codes(num_codes: int, dim: int) -> Tensor:
    """(K, D) codes drawn from U(−√(3/D), √(3/D)): variance 1/D in each dimension, so that the mean of ‖e‖² is 1.

    Raises:
        ValueError: a size is not positive.
    """
    check_size("num_codes", num_codes)
    check_size("dim", dim)
    bound = (3 / dim) ** 0.5
    return torch.empty(num_codes, dim).uniform_(-bound, bound)
