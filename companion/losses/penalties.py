"""What keeps a discriminator from growing too sure (chapter 09)."""

import warnings

import torch
from torch import Tensor, nn

from companion._arguments import check_module, check_number, check_same_device, check_tensor, checks_values, judged
from companion._devices import at_least_float32
from companion.quantizers._processes import several, total

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """½ E[‖∇_x D(x)‖²] at real images (Mescheder et al. 2018, eq. 9, with γ = 1).

    Where the generator is perfect, D should be flat: real and generated images are the same there, and a slope would
    push the generator away again. The penalty flattens D on the data. D(x) is the mean over an image's logits.

    It works under ``torch.no_grad()`` too, then without a gradient of its own. Never computed in half precision.

    Args:
        discriminator: images (B, C, H, W) → logits (B, …). Images do not mix in it.

    Shapes:
        real: (B, C, H, W) → 0-dim.

    Raises:
        ValueError: ``discriminator`` is no module, does not take the images or look at them, or gives no logits (B, …);
            ``real`` has another shape or type.
    """
    check_module("discriminator", discriminator)
    check_tensor("real", real, shape=("B", "*image"))
    if any(isinstance(part, BATCH_NORMS) and part.training for part in discriminator.modules()):
        warnings.warn(
            "discriminator: got one with BatchNorm in training mode, want one in which images do not mix: what is "
            "penalised is not the slope at each image, and its running statistics move",
            stacklevel=2,
        )
    learns = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        x = at_least_float32(real.detach()).clone().requires_grad_()
        logits = judged(discriminator, x)  # (B, …)
        if not logits.requires_grad:
            raise ValueError("discriminator: its logits do not depend on the images, want one that looks at them")
        values = logits.reshape(len(x), -1).mean(1)  # (B,)
        # Images do not mix, so the gradient of the sum has the gradient of each image in its row.
        (gradient,) = torch.autograd.grad(values.sum(), x, create_graph=learns)
        penalty = gradient.square().reshape(len(x), -1).sum(1).mean() / 2
    return penalty if learns else penalty.detach()


def lecam_penalty(real: Tensor, fake: Tensor, real_mean: Tensor, fake_mean: Tensor) -> Tensor:
    """E[(D(x) − α_F)²] + E[(D(x̂) − α_R)²] with α as running means of the logits (Tseng et al. 2021, R_LC).

    It pulls the logits of each kind towards the mean of the other, the more the further they are apart. So with few
    images the discriminator cannot grow ever surer by knowing them by heart. :class:`LeCamPenalty` keeps the means.

    Args:
        real_mean: α_R, of the logits of real images.
        fake_mean: α_F, of the logits of generated images.

    Shapes:
        real, fake: logits of any shape; real_mean, fake_mean: 0-dim → 0-dim.

    Raises:
        ValueError: the shapes or types are others.
    """
    check_tensor("real", real, shape=("*axes",))
    for name, value, shape in (
        ("fake", fake, ("*axes",)),
        ("real_mean", real_mean, ()),
        ("fake_mean", fake_mean, ()),
    ):
        check_tensor(name, value, shape=shape)
        check_same_device(name, value, "real", real)
    real, fake = at_least_float32(real), at_least_float32(fake)
    return (real - fake_mean).square().mean() + (fake - real_mean).square().mean()


class LeCamPenalty(nn.Module):
    """:func:`lecam_penalty` with its running means α_R and α_F, which move in training mode only.

    The first batch sets them; from then on α ← decay · α + (1 − decay) · mean. The penalty is that of the means which
    the batch has moved. With several processes they are means over all of them.

    Args:
        decay: of the running means.

    Shapes:
        real, fake: logits of any shape → 0-dim.

    Raises:
        ValueError: ``decay`` is not at least 0 and below 1, or the logits are not floating point.
    """

    real_mean: Tensor
    fake_mean: Tensor
    updates: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        check_number("decay", decay, least=0, below=1)
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        check_tensor("real", real, shape=("*axes",))
        check_tensor("fake", fake, shape=("*axes",))
        if self.training:
            self._update(real.detach(), fake.detach())
        elif checks_values(self.updates) and int(self.updates) == 0:
            warnings.warn(
                "LeCamPenalty: got a call in eval mode before any in training mode: its means are still 0",
                stacklevel=2,
            )
        return lecam_penalty(real, fake, self.real_mean, self.fake_mean)

    @torch.no_grad()
    def _update(self, real: Tensor, fake: Tensor) -> None:
        means = torch.stack([at_least_float32(logits).mean() for logits in (real, fake)]).to(self.real_mean.dtype)
        if several():
            means = total(means) / torch.distributed.get_world_size()
        kept = self.decay * (self.updates > 0)  # 0 at first: the first batch sets the means
        for mean, new in zip((self.real_mean, self.fake_mean), means, strict=True):
            mean.copy_(kept * mean + (1 - kept) * new)
        self.updates.add_(1)
