"""Vector quantisation with a codebook that is learnt by gradient descent (chapters 03 and 04)."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import check_number
from companion.quantizers.base import ESTIMATORS, Quantized, VectorwiseQuantizer, first_codes
from companion.quantizers.search import nearest_code


def vq_losses(z: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms that pull latents and codes together: one value, two gradients (van den Oord et al. 2017, eq. 3).

    The codebook loss ‖sg[z] − z_q‖² moves the codes only, the commitment loss ‖z − sg[z_q]‖² the latents only.
    Both are means over positions and dimensions, and unweighted.

    Shapes:
        z, z_q: the same shape → (codebook loss, commitment loss), both 0-dim.

    Raises:
        ValueError: the shapes differ (broadcasting would hide it).
    """
    if z.shape != z_q.shape:
        raise ValueError(f"z_q: got shape {tuple(z_q.shape)}, want that of z, {tuple(z.shape)}")
    return (z.detach() - z_q).square().mean(), (z - z_q.detach()).square().mean()


class VectorQuantizer(VectorwiseQuantizer):
    """Each vector is replaced by the nearest of K codes, and the codes are parameters (van den Oord et al. 2017).

    ``loss`` is codebook + β·commitment: β weighs the commitment term only. The reconstruction's gradient passes from
    z_q to z and never reaches the codebook.

    Args:
        num_codes: K.
        dim: D.
        commitment_weight: β.
        estimator: how the gradient passes: "straight-through", or "rotation" (:func:`rotation_trick`).

    The codes start as U(−√(3/D), √(3/D)): variance 1/D in each dimension, so that the mean of ‖e‖² is 1.

    Shapes:
        z: (B, D, *spatial) → ``Quantized`` with z_q (B, D, *spatial) and indices (B, *spatial). Under autocast and for
        latents in half precision, search and losses are in float32.

    Raises:
        ValueError: an argument is out of range; ``z`` has another shape, or holds NaN or infinity (the codebook is
            then as it was).
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
        self.num_codes, self.dim = num_codes, dim
        self.commitment_weight = commitment_weight
        self.estimator = estimator
        self.codebook = nn.Parameter(first_codes(num_codes, dim, estimator))

    def quantize_rows(self, vectors: Tensor) -> Quantized:  # for example (1024, 64): see VectorwiseQuantizer
        indices = nearest_code(vectors, self.codebook)  # search: (1024,)
        codes = functional.embedding(indices, self.codebook)  # lookup: (1024, 64), with a gradient to the codebook
        # The losses come first: past the straight-through estimator, nothing leads to the codebook any more.
        codebook_loss, commitment_loss = vq_losses(vectors, codes)
        loss = codebook_loss + self.commitment_weight * commitment_loss
        z_q = ESTIMATORS[self.estimator](vectors, codes)  # the values of the codes, the gradient of the vectors
        return Quantized(z_q, indices, loss, {"codebook": codebook_loss, "commitment": commitment_loss})

    def encode_rows(self, vectors: Tensor) -> Tensor:
        return nearest_code(vectors, self.codebook)

    def codes(self, indices: Tensor) -> Tensor:
        return functional.embedding(indices, self.codebook)
