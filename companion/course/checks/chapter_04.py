"""Exercises of chapter 04: the residual block, the forward pass of a VQ-VAE, perplexity, bits per image."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from companion.backbones import ResidualBlock, ResNetDecoder, ResNetEncoder
from companion.course.checks.core import (
    DIAGNOSTIC,
    Case,
    Exercise,
    Mistake,
    Observed,
    call,
    module_call,
    register,
)
from companion.metrics import bits_per_image, mse, perplexity
from companion.quantizers import FiniteScalarQuantizer, Quantized, Quantizer, VectorQuantizer, vq_losses
from companion.vqvae import VQVAE, VQVAEOutput

CHAPTER = "04_vq_vae"


# Exercise 4.1 -------------------------------------------------------------------------------------------------------


def _block_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(1)
    x = {0: "x"}
    return [
        Case("two images, three channels", (torch.randn(2, 3, 5, 5, generator=g),), {"channels": 3}, x),
        Case("one channel, 1 × 4 pixels", (torch.randn(1, 1, 1, 4, generator=g),), {"channels": 1}, x, seed=1),
        Case(
            "images that are not contiguous in memory",
            (torch.randn(2, 4, 6, 3, generator=g).transpose(2, 3),),
            {"channels": 4},
            x,
            seed=2,
        ),
    ]


def _block_run(implementation: Any, case: Case) -> Observed:
    """As for every class, and then: is the input as it was?"""
    seen = module_call(ResidualBlock)(implementation, replace(case, gradient_of={}))
    torch.manual_seed(case.seed)
    module = implementation(**case.build)
    given = case.arguments[0].clone()
    with torch.no_grad():
        module(given)
    seen["the input after the call"] = given
    return seen | module_call(ResidualBlock)(implementation, case)


def _block(forward: Callable[[nn.Sequential, Tensor], Tensor]) -> type[nn.Module]:
    """A block with another forward pass; ``forward`` gets the branch and the input."""

    class Block(ResidualBlock):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self.branch, x)

    return Block


_BLOCK_MISTAKES = (
    Mistake(
        "no skip",
        _block(lambda branch, x: branch(x)),
        "the input itself is not in the result: the block is x plus what the branch makes of it.",
    ),
    Mistake(
        "relu(x) on the skip path",
        _block(lambda branch, x: x.relu() + branch(x)),
        "relu(x) takes the place of x in the sum. The skip path needs x as it came: keep x, and let the branch make "
        "its own relu(x).",
    ),
    Mistake(
        "written into the input",  # torch refuses it for an x that wants a gradient, and with these words only
        _block(lambda branch, x: torch.relu_(x) + branch(x)),
        "your code writes into its input: x += …, or a ReLU with inplace=True, changes the caller's x itself. Give a "
        "new tensor back: x + ….",
    ),
    Mistake(
        "skip after ReLU",
        _block(lambda branch, x: x.relu() + branch[1:](x)),
        "the ReLU belongs to the branch only: x + …, not relu(x) + …, and the branch begins with its own ReLU.",
    ),
    Mistake(
        "ReLU of the sum",
        _block(lambda branch, x: (x + branch(x)).relu()),
        "there is a ReLU after the sum. Then no block can hand on a negative number; the sum is the result.",
    ),
    Mistake(
        "minus",
        _block(lambda branch, x: x - branch(x)),
        "the branch is subtracted; it is to be added.",
    ),
    Mistake(
        "first ReLU left out",
        _block(lambda branch, x: x + branch[1:](x)),
        "the first ReLU of the branch is missing: the 3 × 3 convolution gets relu(x).",
    ),
    Mistake(
        "second ReLU left out",
        _block(lambda branch, x: x + branch[3](branch[1](x.relu()))),
        "the ReLU between the two convolutions is missing.",
    ),
    Mistake(
        "only one convolution",
        _block(lambda branch, x: x + branch[:2](x)),
        "the branch stops after the 3 × 3 convolution; a ReLU and the 1 × 1 convolution follow.",
    ),
    Mistake(
        "branch twice",
        _block(lambda branch, x: x + branch(branch(x))),
        "the branch is applied twice.",
    ),
    Mistake(
        "skip detached",
        _block(lambda branch, x: x.detach() + branch(x)),
        "the value is right, but the skip path is cut off from the gradient: it is there to carry it. Remove the "
        "detach.",
    ),
    Mistake(
        "branch detached",
        _block(lambda branch, x: x + branch(x.detach())),
        "the value is right, but no gradient passes through the branch to x. Remove the detach.",
    ),
    Mistake(
        "averaged",
        _block(lambda branch, x: (x + branch(x)) / 2),
        "this is the mean of the two; it is to be their sum.",
    ),
    Mistake(
        "a tenth of the branch",
        _block(lambda branch, x: x + 0.1 * branch(x)),
        "the branch is multiplied by 0.1, as in the demonstration above. The block adds it as it is.",
    ),
)


# Exercise 4.2 -------------------------------------------------------------------------------------------------------


def _vqvae_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(2)
    rows: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("a batch of three, 12×12, α = 2", (3, 1, 12, 12), {"num_codes": 16, "dim": 4, "beta": 0.25, "alpha": 2.0}),
        (
            "one colour image, 8×16, α = 0.5, β = 0.6",
            (1, 3, 8, 16),
            {"num_codes": 7, "dim": 5, "beta": 0.6, "alpha": 0.5},
        ),
    ]
    rows.append(
        ("a quantizer without codebook and losses, 3 × 4 levels", (2, 1, 8, 12), {"levels": (3, 4), "alpha": 1.5})
    )
    return [
        Case(label, (torch.rand(shape, generator=g),), build, {0: "x"}, seed)
        for seed, (label, shape, build) in enumerate(rows)
    ]


def _vqvae_run(implementation: Any, case: Case) -> Observed:
    """Values by field, and for each loss the gradient at encoder, codebook and decoder."""
    x, b = case.arguments[0], case.build
    torch.manual_seed(case.seed)
    quantizer: Quantizer
    if "levels" in b:
        quantizer = FiniteScalarQuantizer(b["levels"])
    else:
        quantizer = VectorQuantizer(b["num_codes"], b["dim"], commitment_weight=b["beta"])
        with torch.no_grad():  # codes that the latents choose between
            quantizer.codebook.mul_(0.3)
    model = implementation(
        ResNetEncoder(x.shape[1], quantizer.dim, hidden=6, num_blocks=1),
        quantizer,
        ResNetDecoder(x.shape[1], quantizer.dim, hidden=6, num_blocks=1),
        quantizer_weight=b["alpha"],
    )
    out = model(x.clone())
    seen: Observed = {"the type of the result": type(out).__name__}
    if not isinstance(out, VQVAEOutput):
        return seen
    seen |= {
        "reconstruction": out.reconstruction,
        "z_e": out.z_e,
        "z_q": out.z_q,
        "indices": out.indices,
        "code_counts": out.code_counts,
        "the terms' names, in their order": list(out.losses) if isinstance(out.losses, dict) else out.losses,
    }
    if isinstance(out.losses, dict):
        seen |= {f'losses["{name}"]': value for name, value in out.losses.items()}
    seen["loss"] = out.loss
    wanted = {
        "the encoder's last layer": model.encoder.layers[-1].weight,
        "the decoder's first layer": model.decoder.layers[0].weight,
    }
    wanted |= {f"the {name}": weight for name, weight in model.quantizer.named_parameters()}
    for name, weight in wanted.items():
        grad = None
        if isinstance(out.loss, Tensor) and out.loss.requires_grad:
            (grad,) = torch.autograd.grad(out.loss, weight, retain_graph=True, allow_unused=True)
        seen[f"the gradient of {name}"] = grad
    seen[f"{DIAGNOSTIC}z_e has a graph"] = isinstance(out.z_e, Tensor) and out.z_e.requires_grad
    return seen


def _forward(step: Callable[..., VQVAEOutput]) -> type[VQVAE]:
    """A VQ-VAE with another forward pass."""

    class Model(VQVAE):
        def forward(self, x: Tensor) -> VQVAEOutput:
            return step(self, x)

    return Model


def _assemble(
    model: VQVAE,
    x: Tensor,
    z_e: Tensor,
    quantized: Quantized,
    *,
    to_decoder: Tensor | None = None,
    image: Callable[[Tensor], Tensor] = lambda reconstruction: reconstruction,
    error: Callable[[Tensor, Tensor], Tensor] = mse,
    loss: Callable[[Tensor, Quantized, float], Tensor] = lambda error, q, alpha: error + alpha * q.loss,
    counts: Callable[[Tensor, int], Tensor] = lambda i, k: torch.bincount(i.flatten(), minlength=k),
    losses: Callable[[Tensor, Quantized, float], dict[str, Tensor]] = lambda e, q, a: {"reconstruction": e, **q.losses},
) -> VQVAEOutput:
    reconstruction = image(model.decoder(quantized.z_q if to_decoder is None else to_decoder))
    e = error(reconstruction, x)
    return VQVAEOutput(
        reconstruction,
        z_e,
        quantized.z_q,
        quantized.indices,
        counts(quantized.indices, model.quantizer.num_codes),
        loss(e, quantized, model.quantizer_weight),
        losses(e, quantized, model.quantizer_weight),
    )


def _with(**options: Any) -> type[VQVAE]:
    def step(model: VQVAE, x: Tensor) -> VQVAEOutput:
        z_e = model.encoder(x)
        return _assemble(model, x, z_e, model.quantizer(z_e), **options)

    return _forward(step)


def _decodes_z_e(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x)
    return _assemble(model, x, z_e, model.quantizer(z_e), to_decoder=z_e)


def _decodes_the_codebook(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x)
    quantized = model.quantizer(z_e)
    return _assemble(model, x, z_e, quantized, to_decoder=model.quantizer.decode(quantized.indices))


def _detached(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x)
    quantized = model.quantizer(z_e)
    return _assemble(model, x, z_e, quantized, to_decoder=quantized.z_q.detach())


def _encoder_cut(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x).detach()
    return _assemble(model, x, z_e, model.quantizer(z_e))


def _losses_again(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x)
    quantized = model.quantizer(z_e)
    if not quantized.losses:
        return _assemble(model, x, z_e, quantized)
    codebook, commitment = vq_losses(z_e, quantized.z_q)
    beta = model.quantizer.commitment_weight
    patched = Quantized(
        quantized.z_q,
        quantized.indices,
        codebook + float(beta) * commitment,  # type: ignore[arg-type]
        {"codebook": codebook, "commitment": commitment},
    )
    return _assemble(model, x, z_e, patched)


def _codebook_assumed(model: VQVAE, x: Tensor) -> VQVAEOutput:
    k = len(model.quantizer.codebook)  # type: ignore[arg-type]
    z_e = model.encoder(x)
    return _assemble(model, x, z_e, model.quantizer(z_e), counts=lambda i, _: torch.bincount(i.flatten(), minlength=k))


def _swapped(model: VQVAE, x: Tensor) -> VQVAEOutput:
    z_e = model.encoder(x)
    out = _assemble(model, x, z_e, model.quantizer(z_e))
    return replace(out, z_e=out.z_q, z_q=out.z_e)


_VQVAE_MISTAKES = (
    Mistake(
        "alpha forgotten",
        _with(loss=lambda e, q, a: e + q.loss),
        "the weight α, self.quantizer_weight, is not in the loss.",
    ),
    Mistake(
        "alpha on the reconstruction",
        _with(loss=lambda e, q, a: a * e + q.loss),
        "α weighs the quantizer's part, not the reconstruction.",
    ),
    Mistake(
        "alpha on everything",
        _with(loss=lambda e, q, a: a * (e + q.loss)),
        "α weighs the quantizer's part only: put it inside the sum.",
    ),
    Mistake(
        "quantizer's loss left out",
        _with(loss=lambda e, q, a: e),
        "the loss is the reconstruction alone: the codebook then never moves. Add α · quantized.loss.",
    ),
    Mistake(
        "beta forgotten",
        _with(loss=lambda e, q, a: e + a * sum(q.losses.values(), torch.zeros(()))),
        "you add the unweighted terms, so that β is lost. quantized.loss is codebook + β · commitment already.",
    ),
    Mistake(
        "reconstruction left out of the loss",
        _with(loss=lambda e, q, a: a * q.loss),
        "the reconstruction error is not in the loss: nothing would teach the decoder.",
    ),
    Mistake(
        "minus",
        _with(loss=lambda e, q, a: a * q.loss - e),
        "the reconstruction error is subtracted. An error is minimised: it is the log-likelihood that would get a "
        "minus.",
    ),
    Mistake(
        "sum over pixels",
        _with(error=lambda a, b: (a - b).square().sum()),
        "the reconstruction term is a sum; here it is the mean over every pixel of every image (mse).",
    ),
    Mistake(
        "absolute error",
        _with(error=lambda a, b: (a - b).abs().mean()),
        "the reconstruction term is the mean *squared* error: mse(reconstruction, x).",
    ),
    Mistake(
        "decoder gets z_e",
        _forward(_decodes_z_e),
        "the decoder gets z_e, so that nothing is quantised: this is an autoencoder. Give it quantized.z_q.",
    ),
    Mistake(
        "decoder gets the codes with their graph",
        _forward(_decodes_the_codebook),
        "the decoder gets the codes from the codebook: the reconstruction's gradient then goes to the codebook, and "
        "none to "
        "the encoder. quantized.z_q has the same value and passes the gradient to the encoder.",
    ),
    Mistake(
        "z_q detached",
        _forward(_detached),
        "z_q is detached before the decoder, so the reconstruction teaches the encoder nothing. The straight-through "
        "estimator in quantized.z_q is what lets the gradient pass.",
    ),
    Mistake(
        "z_e detached",
        _forward(_encoder_cut),
        "z_e is detached: neither reconstruction nor commitment reaches the encoder. The stop-gradients are all inside "
        "the "
        "quantizer.",
    ),
    Mistake(
        "losses taken again from z_q",
        _forward(_losses_again),
        "you compute the losses again from quantized.z_q, which the straight-through estimator has cut from the "
        "codebook: "
        "the codebook gets no gradient. Use quantized.loss and quantized.losses.",
    ),
    Mistake(
        "counts too short",
        _with(counts=lambda i, k: torch.bincount(i.flatten())),
        "code_counts ends at the largest index of this batch; it has one number for each of the K codes: minlength=K.",
    ),
    Mistake(
        "counts of distinct codes",
        _with(counts=lambda i, k: i.unique(return_counts=True)[1]),
        "code_counts lists only the codes that occur; it is to have one number for each of the K codes, 0 where none.",
    ),
    Mistake(
        "counts as shares",
        _with(counts=lambda i, k: torch.bincount(i.flatten(), minlength=k) / i.numel()),
        "code_counts are shares. Counts can be added up over batches, shares cannot.",
    ),
    Mistake(
        "weighted terms",
        _with(losses=lambda e, q, a: {"reconstruction": e, **{n: a * t for n, t in q.losses.items()}}),
        "the terms in the dict are those before their weights.",
    ),
    Mistake(
        "reconstruction not among the terms",
        _with(losses=lambda e, q, a: q.losses),
        'the dict of terms lacks "reconstruction", which comes first.',
    ),
    Mistake(
        "another name",
        _with(losses=lambda e, q, a: {"mse": e, **q.losses}),
        'the first term is called "reconstruction".',
    ),
    Mistake(
        "z_e and z_q exchanged",
        _forward(_swapped),
        "z_e and z_q are in each other's place: the order is reconstruction, z_e, z_q, indices, code_counts, loss, "
        "losses.",
    ),
    Mistake(
        "names written in",
        _with(
            losses=lambda e, q, a: {
                "reconstruction": e,
                "codebook": q.losses["codebook"],
                "commitment": q.losses["commitment"],
            }
        ),
        "you name the quantizer's losses one by one, and other quantizers have others (a finite scalar quantizer has "
        "none): {**quantized.losses} takes what there is.",
    ),
    Mistake(
        "K from the codebook",
        _forward(_codebook_assumed),
        "you take K from self.quantizer.codebook, and not every quantizer has one. K is self.quantizer.num_codes.",
    ),
    Mistake(
        "reconstruction clamped",
        _with(image=lambda reconstruction: reconstruction.clamp(0, 1)),
        "the reconstruction is clamped to [0, 1] before the loss: where it is cut, no gradient says which way to go. "
        "decode clamps for the eye; forward does not.",
    ),
    Mistake(
        "counts as floats",
        _with(counts=lambda i, k: torch.bincount(i.flatten(), minlength=k).float()),
        "code_counts are floats. Counts are whole numbers, int64 as torch.bincount gives them: float32 stops counting "
        "at 16,777,216.",
    ),
    Mistake(
        "the quantizer's terms first",
        _with(losses=lambda e, q, a: {**q.losses, "reconstruction": e}),
        'the terms are right, their order is not: "reconstruction" comes first, then the quantizer\'s own.',
    ),
    Mistake(
        "summed over an image",
        _with(error=lambda a, b: (a - b).square().flatten(1).sum(1).mean()),
        "the reconstruction term is summed over the pixels of an image, and averaged over the images only. Here it is "
        "the mean over every pixel of every image (mse): α and β are meant for that.",
    ),
)


# Exercise 4.3 -------------------------------------------------------------------------------------------------------


def _count_cases() -> Sequence[Case]:
    rows = {
        "counts 3, 1, 4, 1, 5": [3, 1, 4, 1, 5],
        "some codes never chosen": [0, 7, 0, 2, 0, 0, 1],
        "one code takes all": [0, 12, 0],
        "one code in all": [4],
        "large counts": [2**31 + 5, 2**30, 2**20, 0, 3],
    }
    return [Case(label, (torch.tensor(counts),)) for label, counts in rows.items()]


def _p(counts: Tensor) -> Tensor:
    return counts.double() / counts.sum()


_PERPLEXITY_MISTAKES = (
    Mistake(
        "entropy",
        lambda c: -torch.xlogy(_p(c), _p(c)).sum().item(),
        "this is the entropy; the perplexity is its exponential.",
    ),
    Mistake(
        "base 2 inside, e outside",
        lambda c: (-(_p(c) * _p(c).clamp(min=1e-300).log2()).sum()).exp().item(),
        "the logarithm has base 2 and the exponential base e: use the same in both.",
    ),
    Mistake(
        "sign",
        lambda c: torch.xlogy(_p(c), _p(c)).sum().exp().item(),
        "the entropy has a minus sign: H = −Σ p log p. Without it you get one over the perplexity.",
    ),
    Mistake(
        "NaN for unused codes",
        lambda c: (-(_p(c) * _p(c).log()).sum()).exp().item(),
        "0 · log 0 is NaN for a computer: 0 times minus infinity. torch.xlogy(p, p) is 0 there.",
    ),
    Mistake(
        "a small number added",
        lambda c: (-(_p(c) * (_p(c) + 1e-3).log()).sum()).exp().item(),
        "a number is added to p inside the logarithm, and the result is off by it. torch.xlogy(p, p) needs none.",
    ),
    Mistake(
        "not divided",
        lambda c: (-torch.xlogy(c.double(), c.double()).sum()).exp().item(),
        "the counts are not shares yet: divide by their sum first.",
    ),
    Mistake(
        "divided by K",
        lambda c: (-torch.xlogy(c.double() / len(c), c.double() / len(c)).sum()).exp().item(),
        "you divide by the number of codes; shares are counts over the *sum of the counts*.",
    ),
    Mistake(
        "mean",
        lambda c: (-torch.xlogy(_p(c), _p(c)).mean()).exp().item(),
        "the entropy is the sum over the codes, not the mean.",
    ),
    Mistake(
        "softmax",
        lambda c: (-torch.xlogy(c.double().softmax(0), c.double().softmax(0)).sum()).exp().item(),
        "the counts went through a softmax. They are not logits: divide by their sum.",
    ),
    Mistake(
        "number of used codes",
        lambda c: float((c > 0).sum()),
        "this counts the codes in use; a code chosen once then weighs as much as any other.",
    ),
    Mistake(
        "inverse Simpson",
        lambda c: (1 / _p(c).square().sum()).item(),
        "1/Σp² is another count of effective codes (the inverse Simpson index). The perplexity is exp(−Σ p log p).",
    ),
    Mistake(
        "a tensor",
        lambda c: (-torch.xlogy(_p(c), _p(c)).sum()).exp(),
        "the number is right, but it is a tensor; a Python float is wanted: .item().",
    ),
    Mistake(
        "powers of two",
        lambda c: (2 ** (-torch.xlogy(_p(c), _p(c)).sum())).item(),
        "the logarithm is the natural one and the power has base 2: use exp.",
    ),
    Mistake(
        "shares in float32",
        lambda c: (-torch.xlogy(c / c.sum(), c / c.sum()).sum()).exp().item(),
        "right to six digits or so: counts / counts.sum() is float32. Divide in float64: counts.double() / "
        "counts.sum().",
    ),
)


# Exercise 4.4 -------------------------------------------------------------------------------------------------------


def _index_cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(4)
    skewed = (torch.rand(40, 3, 5, generator=g) ** 3 * 11).long()
    skewed[:, 0] = 3  # the first row is always the same code
    return [
        Case("40 images, 3×5 codes of 11", (skewed, 11)),
        Case(
            "two images, 2×2 codes of 100, few of them used", (torch.tensor([[[5, 5], [99, 0]], [[5, 7], [0, 0]]]), 100)
        ),
        Case(
            "codes that are not contiguous in memory, the last three of 9 never used",
            (torch.randint(0, 6, (4, 7, 30), generator=g).movedim(2, 0), 9),
        ),
    ]


def _entropy(counts: Tensor) -> float:
    return math.log2(perplexity(counts))


def _bits(
    *,
    nominal: Callable[[int, int], float] = lambda t, k: t * math.log2(k),
    entropy: Callable[[Tensor, int], float] = lambda i, k: (
        i[0].numel() * _entropy(torch.bincount(i.flatten(), minlength=k))
    ),
    per_position: Callable[[Tensor, int], float] = lambda i, k: sum(_positions(i, k)),
) -> Callable[[Tensor, int], dict[str, float]]:
    def bits(indices: Tensor, num_codes: int) -> dict[str, float]:
        return {
            "nominal": nominal(indices[0].numel(), num_codes),
            "entropy": entropy(indices, num_codes),
            "per_position": per_position(indices, num_codes),
        }

    return bits


def _positions(indices: Tensor, num_codes: int) -> list[float]:
    columns = indices.flatten(1).unbind(1)
    return [_entropy(torch.bincount(column, minlength=num_codes)) for column in columns]


def _per_image(indices: Tensor, num_codes: int) -> list[float]:
    return [_entropy(torch.bincount(image.flatten(), minlength=num_codes)) for image in indices]


def _bits_run(implementation: Any, case: Case) -> Observed:
    result = implementation(*case.arguments)
    if not isinstance(result, dict):
        return {"the type of the result": type(result).__name__}
    return {"the type of the result": "dict", "the names": sorted(result)} | {f'"{n}"': v for n, v in result.items()}


_BITS_MISTAKES = (
    Mistake(
        "nats",
        _bits(
            nominal=lambda t, k: t * math.log(k),
            entropy=lambda i, k: i[0].numel() * math.log(perplexity(torch.bincount(i.flatten()))),
            per_position=lambda i, k: sum(_positions(i, k)) * math.log(2),
        ),
        "these are nats: take logarithms to base 2 for bits.",
    ),
    Mistake(
        "nominal of one code",
        _bits(nominal=lambda t, k: math.log2(k)),
        '"nominal" is what one code costs. A table has T of them: T·log₂K.',
    ),
    Mistake(
        "log of T times K",
        _bits(nominal=lambda t, k: math.log2(t * k)),
        '"nominal" is T·log₂K; log₂(T·K) would be one choice among T·K things.',
    ),
    Mistake(
        "nominal rounded up",
        _bits(nominal=lambda t, k: float(t * math.ceil(math.log2(k)))),
        "log₂K is rounded up to whole bits a code. Codes can be packed together, so nominal bits are not rounded.",
    ),
    Mistake(
        "nominal of all images",
        lambda i, k: _bits()(i, k) | {"nominal": i.numel() * math.log2(k)},
        "this is what all images cost together: count the positions of one image.",
    ),
    Mistake(
        "K from the largest index",
        lambda i, k: _bits()(i, int(i.max()) + 1),
        '"nominal" takes K from the largest index that occurs. Codes that nothing chose are in the codebook, too: '
        "num_codes.",
    ),
    Mistake(
        "K from the codes that occur",
        lambda i, k: _bits()(i, k) | {"nominal": i[0].numel() * math.log2(len(i.unique()))},
        '"nominal" counts only the codes that occur. Those that nothing chose are in the codebook, too: num_codes.',
    ),
    Mistake(
        "entropy of one position",
        _bits(entropy=lambda i, k: _entropy(torch.bincount(i.flatten(), minlength=k))),
        '"entropy" is that of one position. An image has T of them: T·H.',
    ),
    Mistake(
        "entropy of all images",
        _bits(entropy=lambda i, k: i.numel() * _entropy(torch.bincount(i.flatten(), minlength=k))),
        '"entropy" is what all images cost together: it is T·H, with T the positions of one image.',
    ),
    Mistake(
        "entropy of each image",
        _bits(entropy=lambda i, k: i[0].numel() * sum(_per_image(i, k)) / len(i)),
        "the shares of each image are taken apart and then averaged. Whoever writes the codes down does not know an "
        "image's own "
        "shares: take those over all images together.",
    ),
    Mistake(
        "per position: the mean",
        _bits(per_position=lambda i, k: sum(_positions(i, k)) / i[0].numel()),
        '"per_position" is the mean over the positions; an image needs all of them: the sum.',
    ),
    Mistake(
        "per position: perplexities",
        _bits(per_position=lambda i, k: sum(2**h for h in _positions(i, k))),
        '"per_position" adds perplexities. Bits add up, numbers of choices multiply: take the logarithm of each first.',
    ),
    Mistake(
        "per image in place of per position",
        _bits(per_position=lambda i, k: sum(_per_image(i, k))),
        '"per_position" groups by image: with indices.flatten(1) of shape (N, T), a position is a column, table[:, t].',
    ),
    Mistake(
        "rows instead of positions",
        _bits(per_position=lambda i, k: sum(_entropy(torch.bincount(i[:, r].flatten())) for r in range(i.shape[1]))),
        '"per_position" takes a whole row of the grid for a position: flatten h and w into T first.',
    ),
    Mistake(
        "used codes only",
        _bits(
            nominal=lambda t, k: t * math.log2(k),
            entropy=lambda i, k: i[0].numel() * math.log2(len(set(i.flatten().tolist()))),
        ),
        '"entropy" counts how many codes occur, as if all were equally frequent. Use the perplexity of their counts.',
    ),
    Mistake(
        "a tuple",
        lambda i, k: tuple(bits_per_image(i, k).values()),
        'give a dict with the names "nominal", "entropy" and "per_position".',
    ),
    Mistake(
        "T written in",
        _bits(nominal=lambda t, k: 49 * math.log2(k)),
        '"nominal" has T = 49, as in the tables above. T is h·w, the number of positions of these indices.',
    ),
    Mistake(
        "square grid",
        lambda i, k: _bits(nominal=lambda t, k: i.shape[1] ** 2 * math.log2(k))(i, k),
        '"nominal" takes the grid for square. T is h·w.',
    ),
    Mistake(
        "totals",
        lambda i, k: {name: len(i) * bits for name, bits in bits_per_image(i, k).items()},
        "all three are totals over all images. Bits of *one* image are wanted.",
    ),
    *(
        Mistake(
            f'nats in "{name}"',
            lambda i, k, name=name: (bits := bits_per_image(i, k)) | {name: bits[name] * math.log(2)},
            f'"{name}" is in nats, the others are in bits: math.log2 there as well.',
        )
        for name in ("nominal", "entropy", "per_position")
    ),
    Mistake(
        "tensors",
        lambda i, k: {name: torch.tensor(bits) for name, bits in bits_per_image(i, k).items()},
        "the numbers are tensors. Python's own are wanted: float(…) or .item().",
    ),
)


def register_all() -> None:
    register(Exercise("ResidualBlock", CHAPTER, ResidualBlock, _block_cases, _BLOCK_MISTAKES, _block_run))
    register(Exercise("VQVAE", CHAPTER, VQVAE, _vqvae_cases, _VQVAE_MISTAKES, _vqvae_run))
    # In float64, as asked for: shares in float32 are wrong from the seventh digit on.
    register(Exercise("perplexity", CHAPTER, perplexity, _count_cases, _PERPLEXITY_MISTAKES, call, tolerance=1e-10))
    register(Exercise("bits_per_image", CHAPTER, bits_per_image, _index_cases, _BITS_MISTAKES, _bits_run))
