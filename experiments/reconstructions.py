"""What the commands on sharper reconstructions share: a stage of training by each loss, and measures of pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import companion
from companion.classifier import load_classifier, recognise
from companion.data import ImageSet
from companion.losses import (
    AdversarialTraining,
    FeatureDistance,
    PatchDiscriminator,
    classifier_distance,
    hinge_discriminator_loss,
)
from companion.metrics import CodeUsage, distortion, frechet_distance, mse, sharpness, ssim
from companion.pretrained import names


@dataclass(frozen=True)
class PerceptualOutput:
    """The terms of a tokenizer that is trained on a feature distance beside its own loss."""

    loss: Tensor
    losses: dict[str, Tensor]
    code_counts: Tensor


class Training:
    """A tokenizer with what it is trained by: its own loss, a feature distance, and a discriminator.

    Each weight of 0 leaves its term out, network and all. ``stage`` trains on from where the last one ended, with a
    fresh optimizer.

    Args:
        perceptual_weight: of the distance in the features of the classifier that ``eyes_for`` names.
        adversarial_weight: of the discriminator's opinion.
        adaptive: whether that weight is multiplied by the adaptive one.
        width: channels of the discriminator's first convolution.
        discriminator_lr: the learning rate of the discriminator.
        head_start: epochs for the discriminator alone, on the tokenizer as it came, before the first stage. Without
            them its first opinions are noise, which the adaptive weight enlarges.
    """

    def __init__(
        self,
        tokenizer: companion.VQVAE,
        train: ImageSet,
        *,
        perceptual_weight: float = 0.0,
        adversarial_weight: float = 0.0,
        adaptive: bool = True,
        width: int = 32,
        discriminator_lr: float = 1e-3,
        head_start: int = 0,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.train = tokenizer, train
        self.discriminator_lr, self.head_start = discriminator_lr, head_start
        self.perceptual_weight = perceptual_weight
        self.distance = classifier_distance(eyes_for(train)) if perceptual_weight else None
        self.adversarial: AdversarialTraining | None = None
        if adversarial_weight:
            torch.manual_seed(seed)  # of the discriminator
            self.adversarial = AdversarialTraining(
                tokenizer,
                PatchDiscriminator(train.shape[0], width=width),
                self.distance,
                perceptual_weight=perceptual_weight,
                adversarial_weight=adversarial_weight,
                adaptive=adaptive,
            )

    def stage(self, *, epochs: int, lr: float, batch_size: int, seed: int, **options: Any) -> companion.History:
        """Train for some epochs; ``options`` are further arguments of ``fit``."""
        model: nn.Module = self.adversarial or self.tokenizer
        if self.adversarial and self.head_start:
            companion.fit(
                self.adversarial.discriminator,
                self.train,
                epochs=self.head_start,
                batch_size=batch_size,
                lr=self.discriminator_lr,
                objective=opinion_of(self.tokenizer),
                seed=seed,
                **options,
            )
            self.head_start = 0
        model.train()  # also what an earlier call of ``fit`` has left in eval mode
        return companion.fit(
            model,
            self.train,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            optimizer=self._optimizer(lr),
            objective=perceptual(self.distance, self.perceptual_weight)
            if self.distance is not None and self.adversarial is None
            else None,
            **options,
        )

    def _optimizer(self, lr: float) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
        discriminator = self.adversarial.discriminator.parameters() if self.adversarial else ()
        its = {id(p) for p in discriminator}

        def made(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            groups = [
                {"params": [p for p in parameters if id(p) not in its], "lr": lr},
                {"params": [p for p in parameters if id(p) in its], "lr": self.discriminator_lr},
            ]
            return torch.optim.Adam([group for group in groups if group["params"]])

        return made


def perceptual(distance: FeatureDistance, weight: float) -> Callable[..., PerceptualOutput]:
    """The objective of a tokenizer's own loss and ``weight`` times a feature distance."""

    def objective(model: companion.VQVAE, x: Tensor, *_: Tensor) -> PerceptualOutput:
        out = model(x)
        distant = distance.to(x.device)(out.reconstruction, x)
        losses = {"tokenizer": out.loss.detach(), **out.losses, "perceptual": distant}
        return PerceptualOutput(out.loss + weight * distant, losses, out.code_counts)

    return objective


@dataclass(frozen=True)
class Opinion:
    """What a discriminator alone minimises."""

    loss: Tensor


def opinion_of(tokenizer: companion.VQVAE) -> Callable[..., Opinion]:
    """The objective of a discriminator alone: images against what the tokenizer, as it is, makes of them."""

    def objective(discriminator: nn.Module, x: Tensor, *_: Tensor) -> Opinion:
        x_hat = tokenizer.to(x.device).reconstruct(x)
        return Opinion(hinge_discriminator_loss(discriminator(x), discriminator(x_hat)))

    return objective


def eyes_for(data: ImageSet) -> str:
    """Whose classifier looks at these images: their own, or where there is none that of emoji or Fashion-MNIST,
    whichever has as many channels."""
    if f"{data.name}-classifier" in names():
        return data.name
    return "emoji" if data.shape[0] == 3 else "fashion-mnist"


@torch.no_grad()
def measures(model: companion.VQVAE, test: ImageSet, variance: float) -> dict[str, float]:
    """How near the reconstructions of the test images are to them, how sharp they are, and how the codes are used.

    Features are those of the classifier that ``eyes_for`` names: of its five blocks for the feature distance, the ones
    that the perceptual loss trains on, and the pooled ones of its last block for the Fréchet distance. Accuracies are
    measured where it knows these images.

    Args:
        variance: of all pixels of the training images, the unit of distortion.
    """
    name = eyes_for(test)
    eyes, distance = load_classifier(name).to(test.device), classifier_distance(name).to(test.device)
    usage = CodeUsage(model.quantizer.num_codes)
    x, labels = test.batch(torch.arange(len(test)))
    parts = x.split(500)
    for part in parts:
        usage.update(model.encode(part))
    x_hat = torch.cat([model.reconstruct(part) for part in parts])
    distances = torch.cat([distance.per_image(*pair) for pair in zip(x_hat.split(500), parts, strict=True)])
    seen, original = recognise(eyes, x_hat), recognise(eyes, x)
    error = mse(x_hat, x).item()
    right = {"test": original, "reconstructions": seen} if name == test.name else {}
    return {
        "mse": error,
        "distortion": distortion(error, variance),
        "feature_distance": distances.mean().item(),
        "ssim": ssim(x_hat, x).item(),
        "frechet": frechet_distance(seen.features, original.features),
        "sharpness": (sharpness(x_hat) / sharpness(x)).item(),
        "checkerboard": nyquist_power(x_hat) / nyquist_power(x),
        "colour_shift": colour_shift(x_hat, x),
        "perplexity": usage.perplexity,
        "usage": usage.usage,
        **{f"accuracy_{what}": (out.logits.argmax(1) == labels).float().mean().item() for what, out in right.items()},
    }


def nyquist_power(images: Tensor) -> float:
    """Mean power at the highest frequency of either axis, half a cycle a pixel: where a checkerboard shows.

    An upsampling that treats neighbouring pixels differently leaves a pattern of period 2, which is light and dark by
    turns from pixel to pixel. Averaged over these frequencies along one axis, all frequencies along the other, channels
    and images. Edges have some of it too, so compare it with that of the originals.

    Shapes:
        images: (B, C, H, W); where H or W is odd, the last row or column is left out.
    """
    height, width = (side // 2 * 2 for side in images.shape[2:])
    power = torch.fft.fft2(images[..., :height, :width].double(), norm="ortho").abs().square()  # (B, C, H, W)
    rows, columns = power[..., height // 2, :], power[..., :, width // 2]
    return float(torch.cat([rows.flatten(), columns.flatten()]).mean())


def colour_shift(x_hat: Tensor, x: Tensor) -> float:
    """How far the mean colour of an image is off: the absolute difference, averaged over channels and images."""
    return float((x_hat.mean((2, 3)) - x.mean((2, 3))).abs().mean())
