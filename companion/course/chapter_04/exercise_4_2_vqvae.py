"""Exercise 4.2, the forward pass of a VQ-VAE, from images to its output, losses and code counts."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from companion.backbones import ResNetDecoder, ResNetEncoder
from companion.course.checks.comparison import DIAGNOSTIC, Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.course.checks.runners import gradients_at
from companion.metrics import mse
from companion.quantizers import FiniteScalarQuantizer, Quantized, Quantizer, VectorQuantizer, vq_losses
from companion.vqvae import VQVAE, VQVAEOutput


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(2)
    rows: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
        ("a batch of three, 12×12, α = 2", (3, 1, 12, 12), {"num_codes": 16, "dim": 4, "beta": 0.25, "alpha": 2.0}),
        (
            "one colour image, 8×16, α = 0.5, β = 0.6",
            (1, 3, 8, 16),
            {"num_codes": 7, "dim": 5, "beta": 0.6, "alpha": 0.5},
        ),
        ("a quantizer without codebook and losses, 3 × 4 levels", (2, 1, 8, 12), {"levels": (3, 4), "alpha": 1.5}),
    ]
    return [
        Case(label, (torch.rand(shape, generator=g),), build, {0: "x"}, seed)
        for seed, (label, shape, build) in enumerate(rows)
    ]


def run(implementation: Any, case: Case) -> Observed:
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
    weights = {
        "the encoder's last layer": model.encoder.layers[-1].weight,
        "the decoder's first layer": model.decoder.layers[0].weight,
    }
    weights |= {f"the {name}": weight for name, weight in model.quantizer.named_parameters()}
    seen |= {f"the gradient of {name}": gradient for name, gradient in gradients_at(out.loss, weights).items()}
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
    """The output of the right forward pass, with some of its parts replaced."""
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


def _variant(**options: Any) -> type[VQVAE]:
    """A VQ-VAE whose output is put together otherwise; the options are those of ``_assemble``."""

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


def _replaced(change: Callable[[VQVAEOutput], Any]) -> type[VQVAE]:
    """The right output, changed afterwards."""
    return _forward(lambda model, x: change(VQVAE.forward(model, x)))


MISTAKES = (
    Mistake(
        "alpha forgotten",
        _variant(loss=lambda e, q, a: e + q.loss),
        "the weight α, self.quantizer_weight, is not in the loss.",
    ),
    Mistake(
        "alpha on the reconstruction",
        _variant(loss=lambda e, q, a: a * e + q.loss),
        "α weighs the quantizer's part, not the reconstruction.",
    ),
    Mistake(
        "alpha on everything",
        _variant(loss=lambda e, q, a: a * (e + q.loss)),
        "α weighs the quantizer's part only: put it inside the sum.",
    ),
    Mistake(
        "quantizer's loss left out",
        _variant(loss=lambda e, q, a: e),
        "the loss is the reconstruction alone: the codebook then never moves. Add α · quantized.loss.",
    ),
    Mistake(
        "beta forgotten",
        _variant(loss=lambda e, q, a: e + a * sum(q.losses.values(), torch.zeros(()))),
        "you add the unweighted terms, so that β is lost. quantized.loss is codebook + β · commitment already.",
    ),
    Mistake(
        "reconstruction left out of the loss",
        _variant(loss=lambda e, q, a: a * q.loss),
        "the reconstruction error is not in the loss: nothing would teach the decoder.",
    ),
    Mistake(
        "minus",
        _variant(loss=lambda e, q, a: a * q.loss - e),
        "the reconstruction error is subtracted. An error is minimised: it is the log-likelihood that would get a "
        "minus.",
    ),
    Mistake(
        "sum over pixels",
        _variant(error=lambda a, b: (a - b).square().sum()),
        "the reconstruction term is a sum; here it is the mean over every pixel of every image (mse).",
    ),
    Mistake(
        "absolute error",
        _variant(error=lambda a, b: (a - b).abs().mean()),
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
        "none to the encoder. quantized.z_q has the same value and passes the gradient to the encoder.",
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
        "the quantizer.",
    ),
    Mistake(
        "losses taken again from z_q",
        _forward(_losses_again),
        "you compute the losses again from quantized.z_q, which the straight-through estimator has cut from the "
        "codebook: the codebook gets no gradient. Use quantized.loss and quantized.losses.",
    ),
    Mistake(
        "counts too short",
        _variant(counts=lambda i, k: torch.bincount(i.flatten())),
        "code_counts ends at the largest index of this batch; it has one number for each of the K codes: minlength=K.",
    ),
    Mistake(
        "counts of distinct codes",
        _variant(counts=lambda i, k: i.unique(return_counts=True)[1]),
        "code_counts lists only the codes that occur; it is to have one number for each of the K codes, 0 where none.",
    ),
    Mistake(
        "counts as shares",
        _variant(counts=lambda i, k: torch.bincount(i.flatten(), minlength=k) / i.numel()),
        "code_counts are shares. Counts can be added up over batches, shares cannot.",
    ),
    Mistake(
        "weighted terms",
        _variant(losses=lambda e, q, a: {"reconstruction": e, **{n: a * t for n, t in q.losses.items()}}),
        "the terms in the dict are those before their weights.",
    ),
    Mistake(
        "reconstruction not among the terms",
        _variant(losses=lambda e, q, a: q.losses),
        'the dict of terms lacks "reconstruction", which comes first.',
    ),
    Mistake(
        "another name",
        _variant(losses=lambda e, q, a: {"mse": e, **q.losses}),
        'the first term is called "reconstruction".',
    ),
    Mistake(
        "z_e and z_q exchanged",
        _replaced(lambda out: replace(out, z_e=out.z_q, z_q=out.z_e)),
        "z_e and z_q are in each other's place: the order is reconstruction, z_e, z_q, indices, code_counts, loss, "
        "losses.",
    ),
    Mistake(
        "names written in",
        _variant(
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
        _variant(image=lambda reconstruction: reconstruction.clamp(0, 1)),
        "the reconstruction is clamped to [0, 1] before the loss: where it is cut, no gradient says which way to go. "
        "decode clamps for the eye; forward does not.",
    ),
    Mistake(
        "counts as floats",
        _variant(counts=lambda i, k: torch.bincount(i.flatten(), minlength=k).float()),
        "code_counts are floats. Counts are whole numbers, int64 as torch.bincount gives them: float32 stops counting "
        "at 16,777,216.",
    ),
    Mistake(
        "the quantizer's terms first",
        _variant(losses=lambda e, q, a: {**q.losses, "reconstruction": e}),
        'the terms are right, their order is not: "reconstruction" comes first, then the quantizer\'s own.',
    ),
    Mistake(
        "summed over an image",
        _variant(error=lambda a, b: (a - b).square().flatten(1).sum(1).mean()),
        "the reconstruction term is summed over the pixels of an image, and averaged over the images only. Here it is "
        "the mean over every pixel of every image (mse): α and β are meant for that.",
    ),
    Mistake(
        "alpha on one term",
        _variant(loss=lambda e, q, a: e + a * q.losses.get("commitment", 0) + q.losses.get("codebook", 0)),
        "α weighs the whole of quantized.loss, not one of its terms.",
    ),
    Mistake(
        "beta again",
        _variant(loss=lambda e, q, a: e + a * (q.losses.get("codebook", 0) + 0.25 * q.losses.get("commitment", 0))),
        "β is written in. quantized.loss has the quantizer's own in it already.",
    ),
    Mistake(
        "alpha written in",
        _variant(loss=lambda e, q, a: e + 0.25 * q.loss),
        "the weight of quantized.loss is written in. It is α, self.quantizer_weight.",
        also=(_variant(loss=lambda e, q, a: e + 0.1 * q.loss),),
    ),
    Mistake(
        "quantizer's loss subtracted",
        _variant(loss=lambda e, q, a: e - a * q.loss),
        "quantized.loss is subtracted; it is to be added.",
    ),
    Mistake(
        "sigmoid",
        _variant(image=torch.sigmoid),
        "the reconstruction goes through a sigmoid. The decoder's output is the reconstruction as it is.",
    ),
    Mistake(
        "cross-entropy",
        _variant(error=torch.nn.functional.binary_cross_entropy_with_logits),
        "the first term is the mean squared error here, no cross-entropy: mse(reconstruction, x).",
    ),
    Mistake(
        "64 codes",
        _variant(counts=lambda i, k: torch.bincount(i.flatten(), minlength=64)),
        "K = 64 is written in. It is self.quantizer.num_codes.",
    ),
    Mistake(
        "images counted",
        _variant(counts=lambda i, k: torch.stack([(i == j).flatten(1).any(1).sum() for j in range(k)])),
        "these are the images that use a code. Count every position: torch.bincount(indices.flatten(), minlength=K).",
    ),
    Mistake(
        "first image counted",
        _variant(counts=lambda i, k: torch.bincount(i[0].flatten(), minlength=k)),
        "only the first image is counted. All of the batch: indices.flatten().",
    ),
    Mistake(
        "terms kept apart",
        _variant(losses=lambda e, q, a: {"reconstruction": e, "quantizer": q.losses}),
        'the quantizer\'s terms belong into the same dict: {"reconstruction": error, **quantized.losses}.',
        also=(_variant(losses=lambda e, q, a: {"reconstruction": e}),),
    ),
    Mistake("z_e for z_q", _replaced(lambda out: replace(out, z_q=out.z_e)), "the field z_q holds z_e."),
    Mistake(
        "fields in another order",
        _replaced(lambda out: replace(out, code_counts=out.loss, loss=out.code_counts)),
        "the fields are in another order: reconstruction, z_e, z_q, indices, code_counts, loss, losses. Naming them "
        "is safer: loss=….",
        also=(_replaced(lambda out: replace(out, indices=out.code_counts, code_counts=out.indices)),),
    ),
    Mistake(
        "a tuple",
        _replaced(lambda out: tuple(vars(out).values())),
        "this is a tuple. Its fields are to have names: VQVAEOutput(…).",
    ),
)

EXERCISE = Exercise(
    name="VQVAE",
    chapter="04_vq_vae",
    reference=VQVAE,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)
