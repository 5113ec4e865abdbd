"""Priors of the companion beside rq-transformer, and beside themselves without a cache."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.comparison import Setup, Work, Wrong, mixed_precision
from companion.priors import MambaPrior, Prior, RQTransformer, TransformerPrior, filtered_probabilities
from companion.priors.sampling import draw

K, DIM, LAYERS, DEPTH_LAYERS, HEADS = 256, 256, 4, 2, 8
GRID = (7, 7, 2)  # of the RQ-Transformers
RQ_SIZE = f"{' × '.join(map(str, GRID))} of {K} codes, dim {DIM}, {LAYERS} + {DEPTH_LAYERS} layers, {HEADS} heads"
CACHED_SIZE = f"{K} codes, dim {DIM}, {LAYERS} layers, {HEADS} heads"
MAMBA_SIZE = f"{K} codes, dim {DIM}, {LAYERS} layers, a state of 64 columns"
CACHED_BATCH = 16
WHOLE = 49  # up to this T the uncached sample is drawn whole,
SPREAD = 16  # and beyond it so many of its steps are


@dataclass(frozen=True)
class RQ:
    """An RQ-Transformer of whichever library, and what it is asked for."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]  # codes (B, *GRID) → nats per code
    sample: Callable[[int], Tensor]  # n → n tables of codes


def companion_rq(device: torch.device) -> RQ:
    prior = RQTransformer(K, GRID, dim=DIM, layers=LAYERS, depth_layers=DEPTH_LAYERS, heads=HEADS).to(device)
    return RQ(prior, prior.loss, prior.sample)


def peer_rq(device: torch.device) -> RQ:
    """The peer at the same sizes, its heads dim / heads wide as the companion's are (its own default is 64)."""
    from rq_transformer import RQTransformer as Peer  # of the extra `bench`: the tests use the rest without it

    height, width, depth = GRID
    model = Peer(
        num_tokens=K, dim=DIM, max_spatial_seq_len=height * width, depth_seq_len=depth, spatial_layers=LAYERS,
        depth_layers=DEPTH_LAYERS, heads=HEADS, dim_head=DIM // HEADS,
    ).to(device)  # fmt: skip

    @torch.no_grad()
    def sample(n: int) -> Tensor:
        return model.generate(default_batch_size=n, filter_thres=0.0)  # all codes may come

    return RQ(model, lambda codes: model(codes.flatten(1, 2), return_loss=True), sample)


def training(make: Callable[[torch.device], RQ]) -> Setup:
    """Forward and backward of a batch of codes, without the optimizer."""

    def setup(batch: int, device: torch.device, dtype: torch.dtype) -> Work:
        rq = make(device)
        codes = torch.randint(K, (batch, *GRID), device=device)

        def step() -> None:
            with mixed_precision(device, dtype):
                loss = rq.loss(codes)
            loss.backward()

        return Work(step, list(rq.model.parameters()))

    return setup


def sampling(make: Callable[[torch.device], RQ]) -> Setup:
    """A batch of samples, from nothing."""

    def setup(batch: int, device: torch.device, dtype: torch.dtype) -> Work:
        rq = make(device)

        def step() -> None:
            with mixed_precision(device, dtype):
                rq.sample(batch)

        return Work(step, list(rq.model.parameters()))

    return setup


def sampling_cached(length: int, device: torch.device, dtype: torch.dtype) -> Work:
    return _sampling(transformer_prior(length, device), dtype)


def sampling_mamba(length: int, device: torch.device, dtype: torch.dtype) -> Work:
    return _sampling(mamba_prior(length, device), dtype)


def _sampling(prior: Prior, dtype: torch.dtype) -> Work:
    parameters = list(prior.parameters())

    def step() -> None:
        with mixed_precision(parameters[0].device, dtype):
            prior.sample(CACHED_BATCH)

    return Work(step, parameters, parts=prior.length)


def sampling_uncached(length: int, device: torch.device, dtype: torch.dtype) -> Work:
    """Step i takes all codes before it anew, and its cost rises smoothly with i: a few steps tell the mean of all."""
    prior = transformer_prior(length, device)
    codes = torch.randint(K, (CACHED_BATCH, length), device=device)
    uniform = torch.rand(CACHED_BATCH, dtype=torch.float64, device=device)
    chosen = spread(length)

    @torch.no_grad()
    def step() -> None:
        with mixed_precision(device, dtype):
            steps = prior.steps(torch.zeros(CACHED_BATCH, dtype=torch.int64, device=device), cache=False)
            for i in chosen:
                codes[:, i] = draw(filtered_probabilities(steps.logits(codes, i)), uniform)

    return Work(step, parts=len(chosen))


def spread(length: int) -> list[int]:
    """All steps of a short sequence; of a long one those in the middle of ``SPREAD`` equal parts."""
    if length <= WHOLE:
        return list(range(length))
    return [int((part + 0.5) * length / SPREAD) for part in range(SPREAD)]


def transformer_prior(length: int, device: torch.device) -> TransformerPrior:
    side = math.isqrt(length)
    return TransformerPrior(K, (side, side), dim=DIM, layers=LAYERS, heads=HEADS).to(device).eval()


def mamba_prior(length: int, device: torch.device) -> MambaPrior:
    side = math.isqrt(length)
    return MambaPrior(K, (side, side), dim=DIM, layers=LAYERS).to(device).eval()


# The gate


def gated(device: torch.device) -> dict[str, Prior]:
    """The priors whose cached sampling is timed."""
    rq = companion_rq(device).model.eval()
    assert isinstance(rq, RQTransformer)
    found: dict[str, Prior] = {f"RQTransformer, {' × '.join(map(str, GRID))}": rq}
    for kind, make in (("TransformerPrior", transformer_prior), ("MambaPrior", mamba_prior)):
        found |= {f"{kind}, T = {length}": make(length, device) for length in (49, 196, 784)}
    return found


@torch.no_grad()
def cached_against_uncached(prior: Prior, n: int = 4) -> tuple[float, float]:
    """Of ``n`` tables of codes: the largest logit, and the largest difference that the cache makes to one.

    Uncached are the logits of teacher forcing, all in one forward, and those of the uncached steps that are timed.
    """
    device = next(prior.parameters()).device
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(prior.num_codes, (n, *prior.grid), generator=generator).to(device)
    starts = torch.zeros(n, dtype=torch.int64, device=device)
    flat, uncached = codes.flatten(1), prior.steps(starts, cache=False)
    expected = prior.all_logits(codes, starts).flatten(1, -2)  # (n, N, K)
    steps = prior.steps(starts, cache=True)
    cached = torch.stack([steps.logits(flat, i) for i in range(prior.length)], 1)
    difference = float((cached - expected).abs().max())
    for i in spread(prior.length):
        difference = max(difference, float((cached[:, i] - uncached.logits(flat, i)).abs().max()))
    return float(expected.abs().max()), difference


def demand_agreement(difference: float, name: str) -> None:
    """
    Raises:
        Wrong: a cache changes a logit by more than 1e-5.
    """
    if not difference <= 1e-5:
        raise Wrong(
            f"The logits of {name} with a cache differ from those without by {difference:.1g}, more than 1e-5. Nothing "
            "was written."
        )
