"""The patch discriminator, adversarial losses, the adaptive weight, and penalties."""

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from companion import Classifier
from companion.losses import (
    LeCamPenalty,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
    lecam_penalty,
    logits_with_constants,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    patch_map,
    r1_penalty,
)

# The discriminator


def seen_by(model: PatchDiscriminator, size: tuple[int, int], i: int, j: int) -> Tensor:
    """Which pixels of an image reach logit (i, j), by its gradient: (H, W), bool."""
    torch.manual_seed(0)
    x = torch.rand(1, model.in_channels, *size, dtype=torch.float64).requires_grad_()
    model.double()(x)[0, 0, i, j].backward()
    return x.grad[0].abs().sum(0) > 0


def seen(model: PatchDiscriminator, size: int) -> list[int]:
    """How many rows and columns of the image reach the logit in the middle."""
    middle = model(torch.zeros(1, model.in_channels, size, size, dtype=next(model.parameters()).dtype)).shape[2] // 2
    reached = seen_by(model, (size, size), middle, middle)
    return [int(reached.any(axis).sum()) for axis in (0, 1)]


@pytest.mark.parametrize(("layers", "pixels"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_the_patch_that_receptive_field_says(layers: int, pixels: int) -> None:
    model = PatchDiscriminator(2, width=4, layers=layers, norm="none")
    assert model.receptive_field == pixels
    assert seen(model, 3 * pixels) == [pixels, pixels]


def test_group_norm_lets_a_little_through_from_outside_the_patch() -> None:
    model = PatchDiscriminator(2, width=4, layers=1, norm="group")
    assert model.receptive_field == 16
    assert seen(model, 48) == [48, 48]


@pytest.mark.parametrize(("layers", "stride", "offset"), [(1, 2, -5), (2, 4, -11), (3, 8, -23)])
def test_a_patch_begins_where_stride_and_offset_say(layers: int, stride: int, offset: int) -> None:
    model = PatchDiscriminator(1, width=2, layers=layers, norm="none")
    assert (model.stride, model.offset) == (stride, offset)
    size = (2 * model.receptive_field, model.receptive_field + 3)
    logits = model.double()(torch.zeros(1, 1, *size, dtype=torch.float64)).shape[2:]
    for i, j in ((0, 0), (logits[0] // 2, 1), (logits[0] - 1, logits[1] - 1)):
        wanted = torch.zeros(size, dtype=torch.bool)
        rows, columns = (
            slice(max(0, k * stride + offset), k * stride + offset + model.receptive_field) for k in (i, j)
        )
        wanted[rows, columns] = True
        assert torch.equal(seen_by(model, size, i, j), wanted)


def map_by_hand(logits: Tensor, size: tuple[int, int], patch: int, stride: int, offset: int) -> Tensor:
    """Logit by logit."""
    sums, counts = logits.new_zeros(len(logits), 1, *size), logits.new_zeros(size)
    for i in range(logits.shape[2]):
        for j in range(logits.shape[3]):
            rows, columns = (slice(max(0, k * stride + offset), max(0, k * stride + offset + patch)) for k in (i, j))
            sums[..., rows, columns] += logits[:, :, i : i + 1, j : j + 1]
            counts[rows, columns] += 1
    return torch.where(counts > 0, sums / counts, 0.0)


@pytest.mark.parametrize(
    ("logits", "size", "patch", "stride", "offset"),
    [
        ((2, 1, 12, 8), (28, 20), 16, 2, -5),
        ((1, 1, 12, 8), (29, 21), 16, 2, -5),  # a row and a column that fall off the last stride
        ((3, 1, 2, 3), (6, 9), 2, 4, 0),  # gaps between the patches
        ((1, 1, 2, 3), (11, 12), 3, 2, -2),  # pixels below and on the right that no patch sees
        ((2, 1, 5, 4), (3, 2), 4, 1, -3),  # patches that lie outside
    ],
)
def test_the_map_is_the_mean_of_the_logits_that_see_a_pixel(
    logits: tuple[int, ...], size: tuple[int, int], patch: int, stride: int, offset: int
) -> None:
    values = torch.randn(logits, dtype=torch.float64)
    got = patch_map(values, size, patch, stride, offset)
    torch.testing.assert_close(got, map_by_hand(values, size, patch, stride, offset))
    assert got.shape == (logits[0], 1, *size)
    assert patch_map(values.bfloat16(), size, patch, stride, offset).dtype == torch.float32


@pytest.mark.parametrize("layers", [1, 2])
def test_the_map_of_a_discriminator_shows_each_pixel_what_sees_it(layers: int) -> None:
    """The logits that have a gradient at the pixel, found for two pixels."""
    model, size = PatchDiscriminator(1, width=2, layers=layers, norm="none").double(), (29, 36)
    torch.manual_seed(0)
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    logits = model(x)[0, 0]
    reached = {(i, j): seen_by(model, size, i, j) for i in range(logits.shape[0]) for j in range(logits.shape[1])}
    for pixel in ((0, 3), (17, 30)):
        # seen_by draws the image anew, with the same seed
        mean = torch.stack([logits[place] for place, pixels in reached.items() if pixels[pixel]]).mean()
        assert model.map(x)[0, 0][pixel].item() == pytest.approx(mean.item())


def test_a_first_patch_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="offset: got -4, want a whole number from -3 to 0"):
        patch_map(torch.zeros(1, 1, 2, 2), (4, 4), 4, 1, -4)
    with pytest.raises(ValueError, match=r"logits: got float32 of shape \(1, 2, 2, 2\), want .* \(B, 1, h, w\)"):
        patch_map(torch.zeros(1, 2, 2, 2), (4, 4), 4, 1, 0)


@pytest.mark.parametrize(
    ("layers", "size", "logits"), [(1, (32, 32), (14, 14)), (1, (28, 20), (12, 8)), (2, (33, 12), (6, 1))]
)
def test_there_is_one_logit_for_each_patch(layers: int, size: tuple[int, int], logits: tuple[int, int]) -> None:
    assert PatchDiscriminator(3, width=8, layers=layers)(torch.rand(2, 3, *size)).shape == (2, 1, *logits)


def test_the_layers_are_those_of_the_paper() -> None:
    model = PatchDiscriminator(3, width=4, layers=5)
    convolutions = [layer for layer in model.blocks if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 8, 16, 32, 32, 32, 1]  # up to 8 · width
    assert [layer.stride for layer in convolutions] == [(2, 2)] * 5 + [(1, 1)] * 2
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    kinds = [type(layer).__name__ for layer in model.blocks]
    assert kinds[:5] == ["Conv2d", "LeakyReLU", "Conv2d", "GroupNorm", "LeakyReLU"]
    assert kinds[-2:] == ["LeakyReLU", "Conv2d"]
    assert {layer.negative_slope for layer in model.blocks if isinstance(layer, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize("norm", ["group", "none"])
def test_an_image_has_the_same_logits_alone_and_among_others(norm: str) -> None:
    """With BatchNorm, as in the paper, it has others: the proof."""
    torch.manual_seed(0)
    model, x = PatchDiscriminator(1, width=8, norm=norm), torch.rand(4, 1, 28, 28)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    model.blocks[3 if norm == "group" else 0] = nn.Sequential(
        *([nn.BatchNorm2d(16)] if norm == "group" else [nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8)])
    )
    assert (model(x)[:1] - model(x[:1])).abs().max() > 1e-3


def test_a_width_that_8_does_not_divide_has_fewer_groups() -> None:
    model = PatchDiscriminator(1, width=3)
    assert model.blocks[3].num_groups == 6
    assert model(torch.rand(1, 1, 12, 12)).isfinite().all()


def test_an_image_without_a_whole_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="x: got 5×8 pixels, want at least 6 on each side for one patch"):
        PatchDiscriminator(1, layers=1)(torch.rand(1, 1, 5, 8))
    with pytest.raises(ValueError, match="norm: got 'batch', want one of 'group', 'none'"):
        PatchDiscriminator(1, norm="batch")
    assert PatchDiscriminator(1, layers=1)(torch.rand(1, 1, 6, 6)).shape == (1, 1, 1, 1)


# The losses


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([-2.0, 0.0, 3.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2 + 0) / 4 + (0 + 1 + 4) / 3)
    assert hinge_generator_loss(fake).item() == pytest.approx(-1 / 3)


def test_a_logit_that_is_right_by_more_than_1_has_no_gradient_under_the_hinge() -> None:
    real, fake = torch.tensor([1.5, 0.5]).requires_grad_(), torch.tensor([-1.5, 2.0]).requires_grad_()
    hinge_discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -0.5]
    assert fake.grad.tolist() == [0, 0.5]


def test_non_saturating_losses_are_the_cross_entropy() -> None:
    real, fake = torch.randn(3, 4).double(), torch.randn(5).double()
    entropy = nn.functional.binary_cross_entropy
    wanted = entropy(real.sigmoid(), torch.ones_like(real)) + entropy(fake.sigmoid(), torch.zeros_like(fake))
    assert non_saturating_discriminator_loss(real, fake).item() == pytest.approx(wanted.item())
    assert non_saturating_generator_loss(fake).item() == pytest.approx(-fake.sigmoid().log().mean().item())


def test_non_saturating_losses_stay_finite_for_large_logits() -> None:
    """The logarithm of a sigmoid, as the proof, does not."""
    fake = torch.tensor([-1e4, 1e4]).requires_grad_()
    loss = non_saturating_generator_loss(fake)
    loss.backward()
    assert loss.item() == pytest.approx(5000)
    assert fake.grad.tolist() == [-0.5, 0]
    assert non_saturating_discriminator_loss(-fake, fake).item() == pytest.approx(10000)
    assert not (-fake.sigmoid().log()).isfinite().all()


def test_the_generator_learns_from_a_discriminator_that_is_sure() -> None:
    """Minimising E[log(1 − σ)], as the proof, has a gradient of e⁻²⁰ there."""
    fake = torch.tensor([-20.0]).requires_grad_()
    non_saturating_generator_loss(fake).backward()
    assert fake.grad.item() == pytest.approx(-1)
    (saturating,) = torch.autograd.grad((1 - fake.sigmoid()).log().mean(), fake)
    assert abs(saturating.item()) < 1e-8


@pytest.mark.parametrize("loss", [hinge_discriminator_loss, non_saturating_discriminator_loss])
def test_logits_in_half_precision_are_averaged_in_float32(loss) -> None:
    real, fake = torch.full((300, 300), 0.7).bfloat16(), torch.full((300, 300), -0.3).bfloat16()
    value = loss(real, fake)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(real.float(), fake.float()).item(), rel=1e-6)
    with pytest.raises(ValueError, match=r"fake: got \[1.0\], want a tensor"):
        loss(real, [1.0])
    with pytest.raises(ValueError, match="real: got int64"):
        loss(real.long(), fake)


# Constants


def test_with_constants_the_gradient_reaches_the_images_and_no_parameter() -> None:
    """Without, the proof, it reaches both. The discriminator is left as it was."""
    torch.manual_seed(0)
    model, x_hat = PatchDiscriminator(1, width=4).eval(), torch.rand(2, 1, 12, 12).requires_grad_()
    model.blocks[0].bias.requires_grad_(False)
    logits = logits_with_constants(model, x_hat)
    torch.testing.assert_close(logits, model(x_hat))
    hinge_generator_loss(logits).backward()
    got = x_hat.grad.clone()
    assert got.abs().max() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["blocks.0.bias"]
    assert not model.training
    x_hat.grad = None
    hinge_generator_loss(model(x_hat)).backward()
    torch.testing.assert_close(x_hat.grad, got)
    assert model.blocks[0].weight.grad.abs().max() > 0


# The adaptive weight


def two_losses(scale: float = 1.0) -> tuple[Tensor, Tensor, nn.Parameter]:
    torch.manual_seed(0)
    layer, h, target = nn.Parameter(torch.randn(3, 4)), torch.randn(5, 4), torch.randn(5, 3)
    out = h @ layer.T
    return (out - target).square().mean(), scale * out.sin().mean(), layer


def test_the_adaptive_weight_is_the_ratio_of_the_norms_of_two_gradients() -> None:
    reconstruction, adversarial, layer = two_losses()
    norms = [torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)]
    weight = adaptive_weight(reconstruction, adversarial, layer)
    assert weight.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item())
    assert not weight.requires_grad
    assert layer.grad is None
    (weight * adversarial).backward()  # the graph is still there
    assert layer.grad.norm().item() == pytest.approx(norms[0].item(), rel=1e-2)  # both pull equally hard
    assert adaptive_weight(*two_losses(scale=10)).item() == pytest.approx(weight.item() / 10, rel=1e-2)


def test_a_gradient_of_zero_gives_a_weight_that_is_a_number() -> None:
    reconstruction, adversarial, layer = two_losses()
    assert adaptive_weight(0 * reconstruction, adversarial, layer).item() == 0
    assert adaptive_weight(reconstruction, 0 * adversarial, layer, most=50).item() == 50
    assert adaptive_weight(0 * reconstruction, 0 * adversarial, layer).item() == 0
    wanted = torch.autograd.grad(reconstruction, layer, retain_graph=True)[0].norm().item() / 2
    assert adaptive_weight(reconstruction, 0 * adversarial, layer, epsilon=2.0).item() == pytest.approx(wanted)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_overflows_leaves_the_step_without_the_adversarial_loss(bad: float) -> None:
    reconstruction, adversarial, layer = two_losses()
    assert adaptive_weight(reconstruction, bad * adversarial, layer).item() == 0
    assert adaptive_weight(bad * reconstruction, adversarial, layer).item() == 0
    wrong = (bad / (torch.tensor(bad) + 1e-4)).clamp(0, 1e4)  # as it is usually written
    assert wrong.isnan()


def test_a_loss_that_does_not_depend_on_the_layer_is_refused_by_name() -> None:
    reconstruction, adversarial, layer = two_losses()
    other = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="last_layer: got a tensor on which reconstruction_loss does not depend"):
        adaptive_weight(other.sum(), adversarial, layer)
    with pytest.raises(ValueError, match="adversarial_loss: got a loss without a gradient"):
        adaptive_weight(reconstruction, adversarial.detach(), layer)
    with pytest.raises(ValueError, match="last_layer: got a tensor that needs no gradient"):
        adaptive_weight(reconstruction, adversarial, layer.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_weight_is_about_that_of_float32(dtype: torch.dtype, device: torch.device) -> None:
    """Also where the gradients are too small for float16, as those of a mean over many pixels are."""
    if device.type == "pretended":
        pytest.skip("autocast does not know it")
    torch.manual_seed(0)
    decoder, critic = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 1, 4, 2)
    h, x = torch.randn(16, 4, 24, 24), torch.rand(16, 3, 24, 24)

    def losses() -> tuple[Tensor, Tensor]:
        x_hat = decoder(h)
        return (1e-2 * (x_hat.float() - x)).square().mean(), hinge_generator_loss(critic(x_hat))

    wanted = adaptive_weight(*losses(), decoder.weight, epsilon=1e-9).item()
    with torch.autocast(device.type, dtype):
        assert adaptive_weight(*losses(), decoder.weight, epsilon=1e-9).item() == pytest.approx(wanted, rel=0.1)
        plain = [torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0].norm().item() for loss in losses()]
    if dtype == torch.float16:  # the proof: as it is usually written, most of the small gradients are 0
        assert plain[0] / plain[1] < 0.5 * wanted


# Penalties


class Quadratic(nn.Module):
    """D(x) = a · ‖x‖², so ∇D = 2 a x."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x.square().flatten(1).sum(1)


def test_r1_is_half_the_mean_squared_norm_of_the_gradient() -> None:
    model, x = Quadratic(1.5), torch.rand(3, 2, 4, 4)
    penalty = r1_penalty(model, x)
    wanted = 0.5 * (2 * 1.5 * x).square().flatten(1).sum(1).mean()
    assert penalty.item() == pytest.approx(wanted.item(), rel=1e-5)
    penalty.backward()
    assert model.a.grad.item() == pytest.approx(2 * wanted.item() / 1.5, rel=1e-5)  # it is a² times a constant
    assert not x.requires_grad


def test_r1_of_patches_is_that_of_their_mean_and_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model, x = PatchDiscriminator(1, width=4), torch.rand(3, 1, 16, 16)
    single = [r1_penalty(model, one[None]).item() for one in x]
    assert r1_penalty(model, x).item() == pytest.approx(sum(single) / 3, rel=1e-4)
    one = x[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(one).mean(), one)
    assert single[0] == pytest.approx(0.5 * gradient.square().sum().item(), rel=1e-4)


def test_r1_works_where_gradients_are_off_and_in_half_precision(autocast) -> None:
    torch.manual_seed(0)
    model, x = PatchDiscriminator(1, width=4), torch.rand(3, 1, 16, 16)
    wanted = r1_penalty(model, x)
    assert wanted.requires_grad
    for off in (torch.no_grad(), torch.inference_mode()):
        with off:
            value = r1_penalty(model, x)
            assert not value.requires_grad
            assert value.item() == wanted.item()
    with autocast():
        assert r1_penalty(model, x.bfloat16()).dtype == torch.float32
        assert r1_penalty(model, x).item() == wanted.item()


def test_logits_of_patches_that_do_not_see_the_image_are_refused() -> None:
    assert patch_map(torch.zeros(1, 1, 3, 2), (5, 3), 4, 2, 0).shape == (1, 1, 5, 3)  # the last begins at pixel 4 of 5
    with pytest.raises(
        ValueError, match=r"logits: got shape \(1, 1, 3, 2\), .* stride 2 the last begins at pixel 4 of 4"
    ):
        patch_map(torch.zeros(1, 1, 3, 2), (4, 3), 4, 2, 0)


def test_what_is_no_discriminator_of_these_images_is_refused_by_its_name() -> None:
    x = torch.rand(2, 1, 8, 8)
    for wrong, message in (
        (Classifier(), "discriminator: gave a ClassifierOutput, want logits"),
        (PatchDiscriminator(3, width=2), r"discriminator: does not take images of shape \(2, 1, 8, 8\) \(x: got"),
        (nn.Sequential(nn.Linear(5, 1)), r"discriminator: does not take images of shape \(2, 1, 8, 8\)"),
    ):
        for call in (logits_with_constants, r1_penalty):
            with pytest.raises(ValueError, match=message):
                call(wrong.eval(), x)


def test_r1_of_what_does_not_look_at_the_images_is_refused() -> None:
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ones(len(x))

    with pytest.raises(ValueError, match="discriminator: its logits do not depend on the images"):
        r1_penalty(Blind(), torch.rand(2, 1, 4, 4))


def test_lecam_pulls_each_kind_towards_the_mean_of_the_other() -> None:
    real, fake = torch.tensor([1.0, 3.0]).requires_grad_(), torch.tensor([[-2.0, 0.0]]).requires_grad_()
    penalty = lecam_penalty(real, fake, torch.tensor(2.0), torch.tensor(-1.0))
    assert penalty.item() == pytest.approx((4 + 16) / 2 + (16 + 4) / 2)
    penalty.backward()
    assert real.grad.tolist() == [2, 4]
    assert fake.grad.tolist() == [[-4, -2]]


def test_the_first_batch_sets_the_running_means_and_later_ones_move_them() -> None:
    lecam = LeCamPenalty(decay=0.9)
    first = lecam(torch.tensor([1.0, 3.0]), torch.tensor([-1.0]))
    assert (lecam.real_mean.item(), lecam.fake_mean.item()) == (2, -1)
    assert first.item() == pytest.approx((4 + 16) / 2 + 9)
    lecam(torch.tensor([12.0]), torch.tensor([-11.0]))
    assert lecam.real_mean.item() == pytest.approx(0.9 * 2 + 0.1 * 12)
    assert lecam.fake_mean.item() == pytest.approx(0.9 * -1 + 0.1 * -11)


def test_the_running_means_stand_still_in_eval_mode_and_are_in_the_state() -> None:
    lecam = LeCamPenalty()
    lecam(torch.tensor([2.0]), torch.tensor([-2.0]))
    lecam.eval()
    value = lecam(torch.tensor([5.0]), torch.tensor([5.0]))
    assert value.item() == pytest.approx(49 + 9)
    assert lecam.real_mean.item() == 2
    again = LeCamPenalty()
    again.load_state_dict(lecam.state_dict())
    again(torch.tensor([102.0]), torch.tensor([-2.0]))
    assert again.real_mean.item() == pytest.approx(3)  # moved by a hundredth, not set


def test_the_adaptive_weight_comes_before_the_backward() -> None:
    layer = torch.rand(3).requires_grad_()
    loss, other = layer.square().sum(), layer.exp().sum()
    assert adaptive_weight(loss, other, layer) > 0
    loss.backward()
    with pytest.raises(ValueError, match=r"reconstruction_loss: got a loss after its backward\(\), want it before"):
        adaptive_weight(loss, other, layer)


def test_penalties_of_batches_that_mix_and_of_means_that_are_not_set_are_said() -> None:
    mixing = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    x = torch.rand(4, 1, 5, 5)
    with pytest.warns(UserWarning, match="discriminator: got one with BatchNorm in training mode"):
        r1_penalty(mixing, x)
    penalty = LeCamPenalty().eval()
    with pytest.warns(UserWarning, match="LeCamPenalty: got a call in eval mode before any in training mode"):
        penalty(x, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert r1_penalty(mixing.eval(), x) > 0
        penalty.train()(x, x + 1)
        assert penalty.eval()(x, x) > 0
