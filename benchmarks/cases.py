"""What is compared. Another row is another number in ``values``, another table another :class:`Comparison`."""

from benchmarks.comparison import Comparison, Contestant
from benchmarks.priors import (
    CACHED_BATCH,
    CACHED_SIZE,
    MAMBA_SIZE,
    RQ_SIZE,
    SPREAD,
    WHOLE,
    companion_rq,
    peer_rq,
    sampling,
    sampling_cached,
    sampling_mamba,
    sampling_uncached,
    training,
)
from benchmarks.quantizers import (
    DEPTH,
    N,
    Quantizer,
    bare_product,
    companion_ema,
    companion_quantizer,
    companion_residual,
    peer_ema,
    peer_quantizer,
    peer_residual,
    training_step,
)
from benchmarks.state_spaces import (
    ROW_SIZE,
    by_recurrence,
    bytes_of_states,
    bytes_of_tables,
    chunked,
    fused_attention,
    plain_attention,
)


def vector_quantize_pytorch(quantizer: Quantizer) -> Contestant:
    """The peer's training step; at its peak it holds six N × K tables."""
    return Contestant(
        "vector-quantize-pytorch", training_step(quantizer), needs=lambda num_codes: 7 * 4 * N * num_codes
    )


PRODUCT = Contestant("matrix product", bare_product, needs=lambda num_codes: 4 * N * num_codes)

COMPARISONS = (
    Comparison(
        title="Vector quantisation, a codebook that is learnt by gradient",
        axis="K",
        values=(128, 512, 1024, 8192, 65536),
        contestants=(
            Contestant("companion", training_step(companion_quantizer)),
            vector_quantize_pytorch(peer_quantizer),
            PRODUCT,
        ),
        at_most={1024: 0.2},
        aim=2.0,
        bounded=100,
    ),
    Comparison(
        title="Vector quantisation, a codebook that follows by moving average",
        axis="K",
        values=(128, 1024, 8192, 65536),
        contestants=(
            Contestant("companion", training_step(companion_ema)),
            vector_quantize_pytorch(peer_ema),
            PRODUCT,
        ),
        at_most={1024: 0.2, 8192: 0.2},
        bounded=100,
    ),
    Comparison(
        title=f"Residual quantisation, {DEPTH} moving averages in a row",
        axis="K",
        values=(256, 1024),
        contestants=(
            Contestant("companion", training_step(companion_residual)),
            vector_quantize_pytorch(peer_residual),
        ),
        at_most={256: 0.35},
    ),
    Comparison(
        title=f"Training an RQ-Transformer ({RQ_SIZE}), forward and backward",
        axis="batch",
        values=(64,),
        contestants=(
            Contestant("companion", training(companion_rq)),
            Contestant("rq-transformer", training(peer_rq)),
        ),
        at_most={64: 0.8},
        parameters=True,
        seconds=30,
    ),
    Comparison(
        title=f"Sampling from an RQ-Transformer ({RQ_SIZE})",
        axis="batch",
        values=(64,),
        contestants=(
            Contestant("companion", sampling(companion_rq)),
            Contestant("rq-transformer", sampling(peer_rq)),
        ),
        at_most={64: 1 / 25},
        parameters=True,
        memory=False,
        quick=False,
    ),
    Comparison(
        title=f"Sampling from a TransformerPrior ({CACHED_SIZE}, batch {CACHED_BATCH}), per code",
        axis="T",
        values=(49, 196, 784),
        contestants=(
            Contestant("cached", sampling_cached),
            Contestant("uncached", sampling_uncached),
        ),
        at_most={49: 1 / 3, 784: 1 / 10},
        part="code",
        memory=False,
        seconds=20,
        quick=False,
        note=f"Uncached beyond T = {WHOLE}: {SPREAD} of the T steps, spread evenly, stand for all.",
    ),
    Comparison(
        title=f"A state space in chunks and attention ({ROW_SIZE}), forward and backward",
        axis="T",
        values=(64, 256, 1024, 2048, 4096),
        contestants=(
            Contestant("chunks", chunked),
            Contestant("recurrence", by_recurrence, needs=bytes_of_states),
            Contestant("fused attention", fused_attention),
            Contestant("plain attention", plain_attention, needs=bytes_of_tables),
        ),
        at_most={1024: 1 / 5},
        shown=4,
        growth=True,
        seconds=10,
    ),
    Comparison(
        title=f"Sampling from a MambaPrior ({MAMBA_SIZE}) and from a TransformerPrior ({CACHED_SIZE}), "
        f"batch {CACHED_BATCH}, per code",
        axis="T",
        values=(49, 196, 784),
        contestants=(
            Contestant("MambaPrior", sampling_mamba),
            Contestant("TransformerPrior", sampling_cached),
        ),
        at_most={784: 1.0},
        part="code",
        parameters=True,
        memory=False,
        growth=True,
        seconds=20,
        quick=False,
        note="Both with what they keep: a state of one size, or the keys and values of all codes so far.",
    ),
)
