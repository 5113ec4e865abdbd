"""Residual quantisation beside plain vector quantisation: at the same number of codes, and at the same number of bits.

Claims tested, with what decides them written down before the first run (all on paired differences over the seeds, with
their 95 % interval; "much" is 20 % of the distortion, and less than 5 % is "little"):
RQ 2×128 loses much less than VQ 256, the same number of codes; RQ 2×16 loses no more than VQ 256, the same rate;
each quantiser leaves a smaller residual; EMA beats a learned codebook for VQ 256, and makes little difference for RQ;
one shared codebook does as well as three; depth dropout makes the first depths better and costs little at the last.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

import companion
from companion.metrics import CodeUsage, bits_per_image
from companion.quantizers import EMAVectorQuantizer, Quantizer, ResidualQuantizer, VectorQuantizer, rate_bits
from experiments.common import Cell, Setup, run
from experiments.tokenizer import SIZES, tokenizer, trained

DIM = 8
KINDS = (  # R, K, whose codebook, what else
    (1, 256, "EMA", ""),
    (2, 128, "EMA", ""),
    (2, 16, "EMA", ""),
    (1, 256, "learned", ""),
    (2, 128, "learned", ""),
    (2, 16, "learned", ""),
    (3, 64, "EMA", ""),
    (3, 64, "learned", ""),
    (3, 64, "EMA", "shared"),
    (3, 64, "EMA", "dropout"),
)
CURVE = ((1, 16), (1, 64), (3, 16), (4, 16))  # more points of the rate–distortion curve: of three seeds
LARGE = (1, 128**2)  # as many code words as RQ 2×128: slow, so of two seeds only, and k-means has too few vectors


def cells(seeds: int) -> Sequence[Cell]:
    kinds = [(r, k, "EMA", "") for r, k in CURVE]
    large = [(*LARGE, "EMA", ""), (*LARGE, "learned", "")]
    return [
        {"depth": r, "num_codes": k, "codebook": codebook, "variant": variant, "seed": seed}
        for some, its_seeds in ((KINDS, range(seeds)), (large, range(1)), (kinds, range(3)), (large, range(1, 2)))
        for seed in its_seeds
        if seed < seeds
        for r, k, codebook, variant in some
    ]


def quantizer(cell: Cell, seed: int) -> Quantizer:
    """The quantizer of a cell; a depth of 1 is plain vector quantisation."""

    def member() -> Quantizer:
        if cell["codebook"] == "learned":
            return VectorQuantizer(cell["num_codes"], DIM)
        init: Literal["uniform", "k-means"] = "uniform" if cell["num_codes"] == LARGE[1] else "k-means"
        return EMAVectorQuantizer(cell["num_codes"], DIM, decay=0.99, init=init, seed=seed)

    if cell["variant"] == "shared":
        return ResidualQuantizer(member(), depth=cell["depth"])
    if cell["depth"] == 1:
        return member()
    dropout = 0.5 if cell["variant"] == "dropout" else 0.0
    return ResidualQuantizer([member() for _ in range(cell["depth"])], depth_dropout=dropout)


@torch.no_grad()
def measured(model: companion.VQVAE, setup: Setup) -> dict[str, float | list[float]]:
    """Held-out distortion and residual by depth, and what the codes cost, in bits a position."""
    errors: list[Tensor] = []
    squares: list[Tensor] = []
    grew: list[Tensor] = []
    indices: list[Tensor] = []
    for rows in torch.arange(len(setup.test)).split(500):
        x, _ = setup.test.batch(rows)
        z = model.encoder(x)
        codes = model.quantizer.encode(z)
        codes = codes if codes.ndim == 4 else codes[..., None]
        norms, lost = [z.square().sum(1)], []
        for depth in range(1, codes.shape[-1] + 1):
            z_q = decoded(model.quantizer, codes, depth)
            norms.append((z - z_q).square().sum(1))
            lost.append((model.decoder(z_q) - x).square().mean((1, 2, 3)))
        indices.append(codes)
        errors.append(torch.stack(lost, 1))
        squares.append(torch.stack([*norms, (z - z.mean((0, 2, 3), keepdim=True)).square().sum(1)], -1).flatten(0, 2))
        grew.append(torch.stack([b > a for a, b in pairwise(norms)], -1).flatten(0, 2))
    chosen = torch.cat(indices)  # (N, h, w, R)
    *residuals, unit = torch.cat(squares).double().mean(0).tolist()
    usages = [CodeUsage(model.quantizer.num_codes).update(one) for one in chosen.unbind(-1)]
    rates = rate_bits(chosen, model.quantizer.num_codes, depth=chosen.shape[-1])
    by_depth = (torch.cat(errors).double().mean(0) / setup.variance).tolist()
    return {
        "distortion": by_depth[-1],
        "distortion_by_depth": by_depth,
        "residual_by_depth": [value / unit for value in residuals],  # E‖z − Σe‖² over E‖z − E z‖², from depth 0 on
        "grew_by_depth": torch.cat(grew).double().mean(0).tolist(),  # share of positions whose residual got longer
        "perplexity_by_depth": [usage.perplexity for usage in usages],
        "usage_by_depth": [usage.usage for usage in usages],
        "nominal_bits": rates["nominal"],  # a position, as the two below
        "entropy_bits": rates["entropy"],
        "joint_bits": rates["joint"],
        "per_position_bits": bits_per_image(chosen, model.quantizer.num_codes)["per_position"]
        / (chosen.shape[1] * chosen.shape[2]),
    }


def decoded(quantizer: Quantizer, codes: Tensor, depth: int) -> Tensor:
    """Codes (B, h, w, R) → their sum over the first ``depth`` depths; a plain quantizer has one."""
    if isinstance(quantizer, ResidualQuantizer):
        return quantizer.decode(codes, depth=depth)
    return quantizer.decode(codes[..., 0])


def run_cell(cell: Cell, setup: Setup) -> dict[str, float | list[float]]:
    torch.manual_seed(cell["seed"])
    model = tokenizer(setup, quantizer(cell, cell["seed"]))
    history = trained(model, setup, seed=cell["seed"])
    by_epoch = [row["validation_reconstruction"] / setup.variance for row in history.rows]
    return {**measured(model.eval(), setup), "by_epoch": by_epoch}


if __name__ == "__main__":
    run(__file__, SIZES, cells, run_cell)
