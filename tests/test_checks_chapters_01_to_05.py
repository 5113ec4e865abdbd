"""Chapters 01 to 05: right answers written otherwise pass, wrong ones written otherwise get a hint."""

import math

import pytest
import torch

import companion
from companion.course.checks import EXERCISES, check, examine

# Chapter 01


def test_a_right_encoder_written_otherwise_passes_and_weights_load_both_ways():
    class Encoder(torch.nn.Module):
        def __init__(self, latent_dim, in_channels=1, hidden=32, image_size=28):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(in_channels, hidden, 3, stride=2, padding=1)
            self.conv2 = torch.nn.Conv2d(hidden, 2 * hidden, 3, stride=2, padding=1)
            self.to_latent = torch.nn.Linear(2 * hidden * (image_size // 4) ** 2, latent_dim)

        def forward(self, x):
            h = torch.nn.functional.relu(self.conv2(torch.clamp(self.conv1(x), min=0)))
            return self.to_latent(h.reshape(len(x), -1))

    assert check(Encoder) is Encoder
    mine, theirs = Encoder(3), companion.Encoder(3)
    mine.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(mine.state_dict())


@pytest.mark.cpu_only("one of its layers, a lazy one, exists only as a plain tensor")
def test_other_layers_than_given_are_named():
    class Encoder(torch.nn.Module):
        def __init__(self, latent_dim, in_channels=1, hidden=32, image_size=28):
            super().__init__()
            self.net = torch.nn.LazyLinear(latent_dim)

        def forward(self, x):
            return self.net(x.flatten(1))

    report = examine(EXERCISES["Encoder"], Encoder)
    assert report.status == "differs"
    assert "names of the weights" in report.text


def test_zero_grad_at_the_end_of_the_step_is_right_too():
    def train_step(model, optimizer, x):
        loss = model(x).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    assert examine(EXERCISES["train_step"], train_step).status == "matches"


# Chapters 02 and 03


def test_a_loss_that_takes_a_wrong_way_is_named_also_where_no_listed_mistake_explains_it():
    def vq_losses(z, z_q):
        return 3 * (z - z_q).square().mean(), (z - z_q.detach()).square().mean()

    report = examine(EXERCISES["vq_losses"], vq_losses)
    assert report.hint == ""
    assert "the codebook loss sends a gradient to" in report.text
    assert "got 'z (the encoder) and z_q (the codebook)'" in report.text


def test_a_right_quantizer_written_otherwise_passes():
    class VectorQuantizer(torch.nn.Module):
        def __init__(self, num_codes, dim, *, commitment_weight=0.25):
            super().__init__()
            self.commitment_weight = commitment_weight
            self.codebook = torch.nn.Parameter(torch.zeros(num_codes, dim))

        def forward(self, z):
            flat = z.flatten(2).transpose(1, 2) if z.ndim > 2 else z[:, None]  # (B, T, D)
            k = (flat[:, :, None] - self.codebook).square().sum(-1).argmin(-1)
            codes = torch.nn.functional.one_hot(k, len(self.codebook)).to(z.dtype) @ self.codebook
            losses = {
                "codebook": torch.nn.functional.mse_loss(codes, flat.detach()),
                "commitment": torch.nn.functional.mse_loss(flat, codes.detach()),
            }
            codes = flat + (codes - flat).detach()
            z_q = codes.transpose(1, 2).reshape(z.shape)
            loss = losses["codebook"] + self.commitment_weight * losses["commitment"]
            return companion.quantizers.Quantized(z_q, k.reshape(z.shape[:1] + z.shape[2:]), loss, losses)

    assert check(VectorQuantizer) is VectorQuantizer


def bin_by_cases(x, mean, log_scale):
    """One formula for each kind of bin."""
    tail = torch.nn.functional.logsigmoid
    scale = log_scale.exp()
    below, above = (x - 1 / 510 - mean) / scale, (x + 1 / 510 - mean) / scale
    inside = tail(above) + tail(-below) + torch.log1p(-torch.exp(below - above))
    return torch.where(x == 0, tail(above), torch.where(x == 1, tail(-below), inside))


def bin_by_difference(x, mean, log_scale, added):
    below, above = ((x + half - mean) / log_scale.exp() for half in (-1 / 510, 1 / 510))
    tail = torch.nn.functional.logsigmoid
    inside = (torch.sigmoid(above) - torch.sigmoid(below) + added).log()
    return torch.where(x == 0, tail(above), torch.where(x == 1, tail(-below), inside))


def losses_by_torch(z, z_q):
    mean_square = torch.nn.functional.mse_loss
    return [mean_square(z_q, z.detach()), mean_square(z, z_q.detach())]


def quantizer_with(losses):
    """A right quantizer, but for what ``losses`` makes of the losses in the dict."""

    class VectorQuantizer(companion.quantizers.VectorQuantizer):
        def forward(self, z):
            right = super().forward(z)
            named = {name: losses(loss) for name, loss in right.losses.items()}
            return companion.quantizers.Quantized(right.z_q, right.indices, right.loss, named)

    return VectorQuantizer


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("reparameterize", lambda m, s, e: torch.addcmul(m, s.exp().sqrt(), e)),
        ("discretized_logistic", bin_by_cases),
        ("stop_gradient_puzzle", lambda a, b: 2 * a * b.detach() - a * b),
        ("vq_losses", losses_by_torch),
        ("VectorQuantizer", quantizer_with(torch.clone)),
    ],
)
def test_right_answers_of_chapters_02_and_03_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


@pytest.mark.parametrize(
    ("exercise", "wrong", "hint"),
    [
        ("reparameterize", lambda m, s, e: torch.distributions.Normal(m, (s / 2).exp()).rsample(), "noise of your own"),
        ("reparameterize", lambda m, s, e: m + (s / 2).exp() * torch.randn(m.shape), "noise of your own"),
        ("discretized_logistic", lambda *a: bin_by_difference(*a, added=1e-8), "log 1e-8"),
        ("discretized_logistic", lambda *a: bin_by_difference(*a, added=1e-10), "log 1e-10"),
        ("stop_gradient_puzzle", lambda a, b: 2 * (a * b).detach() - a * b, "both gradients are turned"),
        ("vq_losses", lambda z, q: [(a - b).norm(dim=-1).mean() for a, b in ((z.detach(), q), (z, q.detach()))],
         "norm is a length"),
        ("vq_losses", lambda z, q: [(a - b).square().sum(-1).mean() for a, b in ((z.detach(), q), (z, q.detach()))],
         "you sum over an axis"),
        ("VectorQuantizer", quantizer_with(torch.Tensor.item), "are Python numbers"),
    ],
)  # fmt: skip
def test_wrong_answers_of_chapters_02_and_03_written_otherwise_get_a_hint(exercise, wrong, hint):
    report = examine(EXERCISES[exercise], wrong)
    assert report.status == "differs"
    assert hint in report.hint


# Chapters 04 and 05


class BlockOfFunctions(torch.nn.Module):
    """A right residual block, its layers called one by one and the sum taken in place, on a tensor of its own."""

    def __init__(self, channels):
        super().__init__()
        conv = torch.nn.Conv2d
        self.branch = torch.nn.ModuleDict(
            {"1": conv(channels, channels, 3, padding=1), "3": conv(channels, channels, 1)}
        )

    def forward(self, x):
        h = self.branch["1"](torch.clamp(x, min=0))
        h = self.branch["3"](torch.nn.functional.relu(h, inplace=True))
        h += x
        return h


def bits_with_a_loop(indices, num_codes):
    def entropy(codes):
        p = torch.unique(codes, return_counts=True)[1].double() / codes.numel()
        return -(p * p.log2()).sum().item()

    table = indices.reshape(len(indices), -1)
    return {
        "per_position": float(sum(entropy(column) for column in table.T)),
        "entropy": table.shape[1] * entropy(table),
        "nominal": table.shape[1] * torch.tensor(num_codes).double().log2().item(),
    }


def statistics_with_a_loop(vectors, indices, num_codes):
    groups = [vectors[indices == k] for k in range(num_codes)]
    return vectors.new_tensor([len(group) for group in groups]), torch.stack([group.sum(0) for group in groups])


def statistics_in_one_sum(vectors, indices, num_codes):
    rows = torch.cat([vectors, torch.ones_like(vectors[:, :1])], 1)
    sums = rows.new_zeros(num_codes, rows.shape[1]).index_put_((indices,), rows, accumulate=True)
    return sums[:, -1], sums[:, :-1]


def step_of_the_chosen(codebook, counts, n, s, decay, smoothing=1e-5):
    counts = decay * counts + (1 - decay) * n
    smoothed = (counts + smoothing) / (counts.sum() + len(n) * smoothing) * counts.sum()
    codebook, chosen = codebook.clone(), n > 0
    rate = torch.minimum((1 - decay) / smoothed[chosen], 1 / n[chosen])
    codebook[chosen] += rate[:, None] * (s - n[:, None] * codebook)[chosen]
    return codebook, counts


def restart_one_by_one(codebook, counts, candidates, restart_below):
    threshold, candidates = restart_below * counts.mean(), iter(candidates)
    dead = [bool(count < threshold) for count in counts]
    codes = [next(candidates) if gone else code for gone, code in zip(dead, codebook, strict=True)]
    return torch.stack(codes), torch.where(counts < threshold, threshold, counts)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("ResidualBlock", BlockOfFunctions),
        ("bits_per_image", bits_with_a_loop),
        ("code_statistics", statistics_with_a_loop),
        ("code_statistics", statistics_in_one_sum),
        ("ema_step", step_of_the_chosen),
        ("restart", restart_one_by_one),
    ],
)
def test_right_answers_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


def test_whatever_writes_into_the_blocks_input_gets_the_same_hint():
    class Sum(companion.backbones.ResidualBlock):
        def forward(self, x):
            x += self.branch(x)
            return x

    class InPlace(companion.backbones.ResidualBlock):
        def __init__(self, channels):
            super().__init__(channels)
            self.branch[0] = torch.nn.ReLU(inplace=True)

    for wrong in (Sum, InPlace):
        assert "writes into its input" in examine(EXERCISES["ResidualBlock"], wrong).hint


def test_of_several_results_the_one_that_differs_is_named():
    def code_statistics(vectors, indices, num_codes):
        return torch.bincount(indices, minlength=num_codes).to(vectors.dtype), vectors.new_ones(num_codes, 3)

    def ema_step(codebook, counts, n, s, decay, smoothing):
        return companion.quantizers.ema_step(codebook, counts, n, s, decay, smoothing)[0], 2 * counts

    for wrong, name in ((code_statistics, "the sums: expected"), (ema_step, "the counts: expected")):
        assert name in examine(EXERCISES[wrong.__name__], wrong).text


@pytest.mark.parametrize("name", ["code_statistics", "ema_step", "restart"])
@pytest.mark.parametrize(
    "wrong", [lambda *a: None, lambda *a: [a[0], a[0]], lambda *a: a[0], lambda *a: {"codes": a[0]}]
)
def test_something_else_than_the_two_results_says_what_is_wanted(name, wrong):
    assert "expected 'a tuple: " in examine(EXERCISES[name], wrong).text


def test_a_one_hot_matrix_is_seen_in_whatever_way_it_is_made():
    def by_comparison(vectors, indices, num_codes):
        chosen = (indices[:, None] == torch.arange(num_codes)).to(vectors.dtype)  # (N, K)
        return torch.bincount(indices, minlength=num_codes).to(vectors.dtype), torch.einsum(
            "nk,nd->kd", chosen, vectors
        )

    assert "a matrix of N × K numbers" in examine(EXERCISES["code_statistics"], by_comparison).hint


# Right answers written in still other ways


def nearest_from_the_first_code(z, codebook):
    z, codebook = z - codebook[0], codebook - codebook[0]
    return (z @ codebook.T - codebook.square().sum(1) / 2).max(1).indices


def statistics_by_scatter(vectors, indices, num_codes):
    counts = torch.zeros(num_codes, dtype=vectors.dtype).scatter_add(0, indices, torch.ones_like(vectors[:, 0]))
    sums = torch.zeros(num_codes, vectors.shape[1], dtype=vectors.dtype)
    return counts, sums.scatter_add(0, indices[:, None].expand_as(vectors), vectors)


def ema_code_by_code(codebook, counts, n, s, decay, smoothing=1e-5):
    counts, moved = decay * counts + (1 - decay) * n, codebook.clone()
    smoothed = (counts + smoothing) / (counts.sum() + len(n) * smoothing) * counts.sum()
    for k in n.nonzero()[:, 0]:
        rate = min(1.0, float((1 - decay) * n[k] / smoothed[k]))
        moved[k] += rate * (s[k] / n[k] - codebook[k])
    return moved, counts


def perplexity_of_the_chosen(counts):
    p = counts[counts > 0].double() / counts.sum()
    return math.exp(-(p * p.log()).sum())


def bound_by_hand(log_weights):
    largest = log_weights.amax(0)
    return largest + (log_weights - largest).exp().mean(0).log()


def step_with_zeros(model, optimizer, x):
    model.train()
    out = model(x)
    optimizer.zero_grad(set_to_none=False)
    out.loss.backward()
    optimizer.step()
    return out.loss.detach().clone()


def pca_by_svd(x_train, x, d):
    mean = x_train.flatten(1).mean(0)
    basis = torch.linalg.svd(x_train.flatten(1) - mean, full_matrices=False).Vh[:d]
    return ((x.flatten(1) - mean) @ basis.T @ basis + mean).reshape(x.shape)


def kl_by_torch(mean, log_variance):
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    return torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("train_step", step_with_zeros),
        ("pca_reconstruct", pca_by_svd),
        ("interpolate", lambda a, b, n: torch.stack([torch.lerp(a, b, i / (n - 1)) for i in range(n)])),
        ("kl_divergence", lambda m, s: -0.5 * (1 + s - m**2 - s.exp())),
        ("kl_divergence", kl_by_torch),
        ("elbo", lambda a, b: a.sum() / len(a) - b.sum() / len(b)),
        ("importance_weighted_bound", bound_by_hand),
        ("nearest_code", lambda z, e: torch.cdist(z, e, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)),
        ("nearest_code", lambda z, e: torch.stack([(z - code).square().sum(1) for code in e], 1).argmin(1)),
        ("nearest_code", nearest_from_the_first_code),
        ("perplexity", perplexity_of_the_chosen),
        ("perplexity", lambda c: torch.distributions.Categorical(c.double()).entropy().exp().item()),
        ("code_statistics", statistics_by_scatter),
        ("ema_step", ema_code_by_code),
        ("cosine_lookup", lambda z, e: torch.nn.functional.cosine_similarity(z[:, None], e[None], dim=2).argmax(1)),
        ("cosine_lookup", lambda z, e: (z @ unit(e).T).argmax(1)),
        ("cosine_lookup", lambda z, e: torch.cdist(unit(z), unit(e)).argmin(1)),
        ("cosine_lookup", lambda z, e: (unit(z) @ unit(e).T).clamp(-1, 1).acos().argmin(1)),
    ],
)
def test_other_right_answers_pass_the_inputs_that_tell_wrong_ones(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text
