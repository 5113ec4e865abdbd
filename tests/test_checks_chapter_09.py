"""Chapter 09: right answers written otherwise pass, wrong ones written otherwise get a hint."""

import copy

import pytest
import torch
from torch.nn import functional

from companion.course.checks import EXERCISES, examine

# 9.1


def distance_by_loops(features_hat, features, epsilon=1e-4):
    distances = []
    for b in range(len(features[0])):
        total = 0
        for f_hat, f in zip(features_hat, features, strict=True):
            h, w = f.shape[2:]
            for i in range(h):
                for j in range(w):
                    u, v = (
                        one[b, :, i, j] / (one[b, :, i, j].square().sum() + epsilon**2).sqrt() for one in (f_hat, f)
                    )
                    total = total + (u - v).square().sum() / (h * w)
        distances.append(total)
    return torch.stack(distances)


def distance_with_one_more_channel(features_hat, features, epsilon=1e-4):
    """The length of a vector that has ε at its end; no gradient to the features of x."""

    def unit(f):
        return f / torch.cat([f, torch.full_like(f[:, :1], epsilon)], 1).norm(dim=1, keepdim=True)

    pairs = zip(features_hat, features, strict=True)
    return sum((unit(f_hat) - unit(f).detach()).pow(2).mean((2, 3)).sum(1) for f_hat, f in pairs)


def distance_in_place(features_hat, features, epsilon=1e-4):
    total = 0
    for f_hat, f in zip(features_hat, features, strict=True):
        f = f.clone()
        f /= f.square().sum(1, keepdim=True).add_(epsilon**2).sqrt_()
        total += (f_hat * (f_hat.square().sum(1, keepdim=True) + epsilon**2).rsqrt() - f).square().sum(1).mean((1, 2))
    return total


def distance_with(unit, reduce=lambda d: d.sum(1).mean((1, 2)), over_taps=sum):
    def distance(features_hat, features, epsilon=1e-4):
        pairs = zip(features_hat, features, strict=True)
        return over_taps([reduce((unit(f_hat, epsilon) - unit(f, epsilon)).square()) for f_hat, f in pairs])

    return distance


def of_length_1(f, epsilon):
    return f / (f.square().sum(1, keepdim=True) + epsilon**2).sqrt()


# 9.2


def hinges_by_min(real, fake):
    zero = real.new_zeros(())
    return -torch.minimum(zero, real - 1).mean() - torch.minimum(zero, -fake - 1).mean(), fake.mean().neg()


def hinges_one_by_one(real, fake):
    of_real = sum((1 - one) * (one < 1) for one in real.flatten()) / real.numel()
    of_fake = sum((1 + one) * (one > -1) for one in fake.flatten()) / fake.numel()
    return [of_real + of_fake, -fake.sum() / fake.numel()]


# 9.3


def weight_without_detach(reconstruction_loss, adversarial_loss, last_layer, most=1e4, epsilon=1e-4):
    """torch.autograd.grad gives gradients without a graph."""
    a, b = (
        torch.autograd.grad(one, last_layer, retain_graph=True)[0].square().sum() ** 0.5
        for one in (reconstruction_loss, adversarial_loss)
    )
    return torch.clamp_(a / (b + epsilon), max=most)


def weight_by_backward(reconstruction_loss, adversarial_loss, last_layer, most=1e4, epsilon=1e-4, back=True):
    before, norms = last_layer.grad, []
    for one in (reconstruction_loss, adversarial_loss):
        last_layer.grad = None
        one.backward(retain_graph=True, inputs=[last_layer] if back else None)
        norms.append(last_layer.grad.norm())
    last_layer.grad = before
    return (norms[0] / (norms[1] + epsilon)).clamp(max=most)


def weight_of_all_parts(reconstruction_loss, adversarial_loss, last_layer, most=1e4, epsilon=1e-4):
    reconstruction_loss.backward(retain_graph=True)
    first = last_layer.grad.clone()
    adversarial_loss.backward(retain_graph=True)
    return (first.norm() / ((last_layer.grad - first).norm() + epsilon)).clamp(max=most)


# 9.4


def hinge(real, fake):
    return (1 - real).relu().mean() + (1 + fake).relu().mean()


def routed_by_requires_grad(x, x_hat, discriminator):
    before = [p.requires_grad for p in discriminator.parameters()]
    discriminator.requires_grad_(False)
    of_generator = -discriminator(x_hat).mean()
    for parameter, wanted in zip(discriminator.parameters(), before, strict=True):
        parameter.requires_grad_(wanted)
    return of_generator, hinge(discriminator(x), discriminator(x_hat.detach()))


def routed_by_a_copy(x, x_hat, discriminator):
    constant = copy.deepcopy(discriminator).requires_grad_(False)
    real, fake = discriminator(torch.cat([x, x_hat.detach()])).chunk(2)
    return [-constant(x_hat).mean(), hinge(real, fake)]


def switched_on_for_all(x, x_hat, discriminator):
    discriminator.requires_grad_(False)
    of_generator = -discriminator(x_hat).mean()
    discriminator.requires_grad_(True)
    return of_generator, hinge(discriminator(x), discriminator(x_hat.detach()))


def switched_on_too_late(x, x_hat, discriminator):
    discriminator.requires_grad_(False)
    losses = -discriminator(x_hat).mean(), hinge(discriminator(x), discriminator(x_hat.detach()))
    discriminator.requires_grad_(True)
    return losses


def generators_gradient_thrown_away(x, x_hat, discriminator):
    of_generator = -discriminator(x_hat).mean()
    of_generator.backward(retain_graph=True)
    discriminator.zero_grad()
    return of_generator, hinge(discriminator(x), discriminator(x_hat.detach()))


# 9.5


def map_pixel_by_pixel(logits, size, patch, stride, offset):
    result = logits.new_zeros(len(logits), 1, *size)
    starts = [[k * stride + offset for k in range(n)] for n in logits.shape[2:]]
    for y in range(size[0]):
        for x in range(size[1]):
            rows, columns = (
                [k for k, start in enumerate(one) if start <= at < start + patch]
                for one, at in zip(starts, (y, x), strict=True)
            )
            if rows and columns:
                result[:, :, y, x] = logits[:, :, rows][..., columns].mean((2, 3))
    return result


def map_by_products(logits, size, patch, stride, offset):
    """Which rows a row of logits sees, and which columns: two matrices of zeros and ones."""
    rows, columns = (
        (torch.arange(pixels)[:, None] - torch.arange(n) * stride - offset).clamp(-1, patch) for pixels, n in
        zip(size, logits.shape[2:], strict=True)
    )  # fmt: skip
    rows, columns = (((one >= 0) & (one < patch)).to(logits.dtype) for one in (rows, columns))
    counts = rows.sum(1)[:, None] * columns.sum(1)
    return torch.where(counts > 0, rows @ logits @ columns.T / counts.clamp(min=1), 0)


@torch.no_grad()
def map_in_place(logits, size, patch, stride, offset):
    ones = torch.ones(1, 1, patch, patch, dtype=logits.dtype)
    canvas = functional.conv_transpose2d(logits, ones, stride=stride)
    canvas /= functional.conv_transpose2d(torch.ones_like(logits), ones, stride=stride).clamp_(min=1)
    canvas = functional.pad(canvas, (0, size[1], 0, size[0]))
    return canvas[:, :, -offset : -offset + size[0], -offset : -offset + size[1]]


def map_with(divide=lambda sums, counts: sums / counts.clamp(min=1), **others):
    def answer(logits, size, patch, stride, offset):
        patch, stride, offset = others.get("numbers", lambda *numbers: numbers)(patch, stride, offset)
        return divide(*(map_in_parts(one, size, patch, stride, offset) for one in (logits, torch.ones_like(logits))))

    return answer


def map_in_parts(logits, size, patch, stride, offset):
    ones = logits.new_ones(1, 1, patch, patch)
    canvas = functional.pad(functional.conv_transpose2d(logits, ones, stride=stride), (0, size[1], 0, size[0]))
    return canvas[:, :, -offset : -offset + size[0], -offset : -offset + size[1]]


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("feature_distance", distance_by_loops),
        ("feature_distance", distance_with_one_more_channel),
        ("feature_distance", distance_in_place),
        ("feature_distance", distance_with(of_length_1)),
        ("hinge_losses", hinges_by_min),
        ("hinge_losses", hinges_one_by_one),
        ("adaptive_weight", weight_without_detach),
        ("adaptive_weight", weight_by_backward),
        ("routed_losses", routed_by_requires_grad),
        ("routed_losses", routed_by_a_copy),
        ("patch_map", map_pixel_by_pixel),
        ("patch_map", map_by_products),
        ("patch_map", map_in_place),
        ("patch_map", map_with()),
    ],
)
def test_right_answers_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


@pytest.mark.parametrize(
    ("exercise", "wrong", "hint"),
    [
        ("feature_distance", distance_with(lambda f, _: functional.normalize(f, dim=1)), "0 / 0"),
        ("feature_distance", distance_with(lambda f, _: f / (f.norm(dim=1, keepdim=True) + 1e-10)), "tiny number"),
        ("feature_distance", distance_with(of_length_1, lambda d: d.mean((1, 2, 3))), "averaged over the channels"),
        ("feature_distance", distance_with(of_length_1, lambda d: d.sum((1, 2, 3))), "the positions are summed"),
        ("feature_distance", distance_with(of_length_1, lambda d: d.sum(1).mean()), "the images are averaged"),
        ("feature_distance", distance_with(of_length_1, over_taps=lambda d: sum(d) / len(d)), "the taps are averaged"),
        ("feature_distance", distance_with(lambda f, e: of_length_1(f, e).detach()), "no gradient arrives"),
        ("feature_distance", lambda features_hat, features, epsilon=1e-4: None, "is there a return"),
        ("hinge_losses", lambda real, fake: hinge(real, fake), "one loss"),
        ("hinge_losses", lambda real, fake: (hinge(real.mean(), fake.mean()), -fake.mean()), "average first"),
        ("hinge_losses", lambda real, fake: (hinge(fake, real), -fake.mean()), "the wrong way round"),
        ("hinge_losses", lambda real, fake: (hinge(real, fake), -fake.sum()), "generator's loss is a sum"),
        ("hinge_losses", lambda real, fake: None, "is there a return"),
        ("adaptive_weight", lambda *given, **options: weight_by_backward(*given, **options, back=False), "right"),
        ("adaptive_weight", weight_of_all_parts, "leaves gradients in .grad"),
        ("adaptive_weight", lambda *given, **options: weight_without_detach(*given), "ε is a fixed number"),
        ("routed_losses", switched_on_for_all, "also the one that was frozen before"),
        ("routed_losses", switched_on_too_late, "while its parameters are switched off"),
        ("routed_losses", generators_gradient_thrown_away, "learn to be fooled"),
        ("routed_losses", lambda x, x_hat, d: hinge(d(x), d(x_hat)), "one loss"),
        ("patch_map", map_with(lambda sums, counts: sums), "this is the sum"),
        ("patch_map", map_with(lambda sums, counts: sums / counts), "NaN"),
        ("patch_map", map_with(lambda sums, counts: sums / counts.amax()), "the same number everywhere"),
        ("patch_map", map_with(numbers=lambda patch, stride, offset: (patch, stride, 0)), "offset is ignored"),
        ("patch_map", map_with(numbers=lambda patch, stride, offset: (stride, stride, offset)), "Its patch is larger"),
        ("patch_map", lambda logits, size, *rest: map_in_place(logits, size[::-1], *rest), "mixed up"),
        ("patch_map", lambda logits, size, *rest: functional.interpolate(logits, size, mode="area"), "blown up"),
    ],
)  # fmt: skip
def test_wrong_answers_written_otherwise_get_a_hint(exercise, wrong, hint):
    report = examine(EXERCISES[exercise], wrong)
    assert report.status == "differs"
    assert hint in report.hint


def test_whom_a_loss_reaches_is_said_even_where_no_hint_fits():
    def routed_losses(x, x_hat, discriminator):
        both = 3 * hinge(discriminator(x), discriminator(x_hat))
        return both, both

    report = examine(EXERCISES["routed_losses"], routed_losses)
    assert (
        "the generator's loss sends a gradient to: expected 'x_hat'\n  got 'x_hat and the discriminator'" in report.text
    )
