"""Chapters 06 to 08: right answers written otherwise pass, wrong ones written otherwise get a hint."""

import math

import pytest
import torch
from exercise_solutions import solution_of

import companion
from companion.course.checks import EXERCISES, check, examine

# Chapter 06


def test_rates_are_told_by_name_and_tensors_from_numbers():
    def counted(indices, num_codes):
        stacks = indices.reshape(-1, indices.shape[-1])

        def entropy(counts):
            shares = counts[counts > 0] / counts.sum()
            return -(shares * shares.log2()).sum()

        return {
            "nominal": stacks.shape[1] * math.log2(num_codes),
            "entropy": sum(entropy(torch.bincount(column, minlength=num_codes)) for column in stacks.T),
            "joint": entropy(torch.unique(stacks, dim=0, return_counts=True)[1]),
        }

    def right(indices, num_codes):
        return {name: float(value) for name, value in counted(indices, num_codes).items()}

    def from_one_table(indices, num_codes):
        return right(indices, num_codes) | {"entropy": right(indices.reshape(-1, 1), num_codes)["entropy"]}

    exercise = EXERCISES["rate_bits"]
    assert examine(exercise, right).status == "matches"
    assert ".item()" in examine(exercise, counted).hint
    assert 'result["entropy"]: expected' in examine(exercise, from_one_table).text
    assert "expected 'a dict: entropy, joint, nominal'" in examine(exercise, lambda indices, k: [1.0]).text


def test_losses_of_the_sum_so_far_are_those_of_the_residual():
    def residual_losses(z, codes):
        so_far, codebook, commitment = torch.zeros_like(z), [], []
        for code in codes:
            codebook.append((code - (z - so_far).detach()).pow(2).mean())
            so_far = so_far + code.detach()
            commitment.append((z - so_far).pow(2).mean())
        return torch.stack(codebook), torch.stack(commitment)

    assert check(residual_losses) is residual_losses


# Chapter 07


class AttentionWeights(torch.nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_qkv, self.to_out = torch.nn.Linear(dim, 3 * dim), torch.nn.Linear(dim, dim)

    def scores(self, x):
        """Queries against keys, (B, heads, T, T), and the values, (B, T, heads, d)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.to_qkv(x).chunk(3, -1))
        return torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1]), v

    def gathered(self, weights, v):
        return self.to_out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


def test_attention_by_einsum_and_with_a_large_negative_number_is_right():
    class CausalSelfAttention(AttentionWeights):
        def forward(self, x):
            scores, v = self.scores(x)
            return self.gathered((scores - 1e9 * torch.ones_like(scores).triu(1)).softmax(-1), v)

    assert check(CausalSelfAttention) is CausalSelfAttention


def test_zero_times_infinity_in_a_mask_and_attention_over_the_heads_have_hints():
    class Infinite(AttentionWeights):
        def forward(self, x):
            scores, v = self.scores(x)
            return self.gathered((scores + torch.ones_like(scores).triu(1) * -torch.inf).softmax(-1), v)

    class OverTheHeads(AttentionWeights):
        def forward(self, x):
            q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.to_qkv(x).chunk(3, -1))
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.to_out(out.flatten(2))

    assert "NaN" in examine(EXERCISES["CausalSelfAttention"], Infinite).hint
    assert "over the heads" in examine(EXERCISES["CausalSelfAttention"], OverTheHeads).hint


def nucleus_sampling(*, divide=True, keep=lambda ranked, p: ranked.cumsum(-1) - ranked < p):
    """What is drawn from, written with logits for top-k, and counting codes for top-p."""

    def filtered_probabilities(logits, *, temperature=1.0, top_k=None, top_p=None):
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
        p = (logits / temperature).softmax(-1)
        if top_k is not None:
            p = p * (p >= p.sort(-1, descending=True).values[..., top_k - 1 : top_k])
            p = p / p.sum(-1, keepdim=True) if divide else p
        if top_p is not None:
            ranked = p.sort(-1, descending=True).values
            inside = keep(ranked, top_p)
            inside[..., 0] = True
            p = p * (p >= ranked.gather(-1, inside.sum(-1, keepdim=True) - 1))
        return p / p.sum(-1, keepdim=True)

    return filtered_probabilities


def test_sampling_that_counts_the_codes_it_keeps_is_right():
    filtered_probabilities = nucleus_sampling()
    assert check(filtered_probabilities) is filtered_probabilities


def test_sampling_that_divides_only_at_the_end_or_stops_before_the_sum_is_reached_has_hints():
    exercise = EXERCISES["filtered_probabilities"]
    assert "divide by the sum after top-k" in examine(exercise, nucleus_sampling(divide=False)).hint
    stops = nucleus_sampling(keep=lambda ranked, p: ranked.cumsum(-1) <= p)
    assert "stays *below* top_p" in examine(exercise, stops).hint


def one_step(x, layer, keys, values, *, is_causal=False):
    """Cached attention with torch's fused function; one position needs no transpose."""
    b, _, dim = x.shape
    query, key, value = (part.reshape(b, layer.heads, 1, -1) for part in layer.to_qkv(x).chunk(3, -1))
    keys, values = torch.cat((keys, key), dim=2), torch.cat((values, value), dim=-2)
    attend = torch.nn.functional.scaled_dot_product_attention
    return layer.to_out(attend(query, keys, values, is_causal=is_causal).reshape(b, 1, dim)), keys, values


def one_step_into_a_buffer(x, layer, keys, values):
    """With einsum, and the kept tensors copied into longer ones."""
    query, *new = layer.to_qkv(x).reshape(len(x), 3, layer.heads, -1).unbind(1)  # each (B, heads, d)
    longer = []
    for kept, one in zip((keys, values), new, strict=True):
        longer.append(kept.new_empty(*kept.shape[:2], kept.shape[2] + 1, kept.shape[3]))
        longer[-1][:, :, :-1], longer[-1][:, :, -1] = kept, one
    weights = (torch.einsum("bhd,bhtd->bht", query, longer[0]) / query.shape[-1] ** 0.5).softmax(-1)
    out = torch.einsum("bht,bhtd->bhd", weights, longer[1]).flatten(1)
    return [layer.to_out(out)[:, None], *longer]


def test_a_causal_mask_and_switched_off_gradients_in_a_cached_step_have_hints():
    exercise = EXERCISES["cached_attention"]
    assert "no mask" in examine(exercise, lambda *given: one_step(*given, is_causal=True)).hint
    assert "no gradient arrives" in examine(exercise, torch.no_grad()(one_step)).hint


@pytest.mark.parametrize("step", [solution_of(EXERCISES["cached_attention"]), EXERCISES["cached_attention"].reference])
def test_cached_attention_step_by_step_is_what_the_companion_computes_with_its_cache_and_at_once(step):
    torch.manual_seed(0)
    layer = companion.priors.transformer.CausalSelfAttention(12, 3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    cache = companion.priors.transformer.Cache(2, 3, 5, 4, x)
    keys = values = x.new_zeros(2, 3, 0, 4)
    with torch.no_grad():
        whole = layer(x)
        for t in range(5):
            out, keys, values = step(x[:, t : t + 1], layer, keys, values)
            torch.testing.assert_close(out, layer(x[:, t : t + 1], cache))
            torch.testing.assert_close(out, whole[:, t : t + 1])
    torch.testing.assert_close((keys, values), (cache.keys, cache.values))


# Chapter 08


def test_the_loss_of_logits_whose_codes_are_on_the_last_axis_is_explained():
    class RQTransformer(companion.RQTransformer):
        def forward(self, codes, labels=None):
            logits = super().forward(codes, labels).logits
            return companion.priors.PriorOutput(logits, torch.nn.functional.cross_entropy(logits, codes))

    report = examine(EXERCISES["RQTransformer"], RQTransformer)
    assert report.status == "differs"
    assert "axis 1" in report.hint


def test_a_model_whose_weights_got_gradients_is_told_so():
    report = examine(EXERCISES["RQTransformer"], solution_of(EXERCISES["RQTransformer"]))
    assert report.text.startswith("✅ RQTransformer matches: values and gradients")


def test_a_loop_over_positions_reads_what_the_spatial_transformer_reads():
    """With one position it touches no table, where the companion's tables get a gradient of zeros."""

    def spatial_inputs(stacks, tables, start, positions):
        t, r = stacks.shape[1:]
        u = [sum(tables[s][stacks[:, i, s]] for s in range(r)) for i in range(t - 1)]
        return torch.stack([start, *u], 1) + positions

    assert check(spatial_inputs) is spatial_inputs


def test_a_loop_down_the_stack_reads_what_the_depth_transformer_reads():
    """With one code a position it touches no table."""

    def depth_inputs(h, stacks, tables, depths):
        sums, inputs = 0, [h + depths[0]]
        for r in range(stacks.shape[2] - 1):
            sums = sums + tables[r][stacks[..., r]]
            inputs.append(sums + depths[r + 1])
        return torch.stack(inputs, 2)

    assert check(depth_inputs) is depth_inputs


# Right answers written in still other ways


@torch.no_grad()
def encode_into_a_copy(z, quantizers):
    left, indices = z.clone(), []
    for quantizer in quantizers:
        indices.append(quantizer.encode(left))
        left -= quantizer.decode(indices[-1])
    return torch.stack(indices, -1)


class QuantizerByAddition(companion.quantizers.ResidualQuantizer):
    def forward(self, z):
        left, total, indices, loss, terms = z, 0, [], 0, {}
        for quantizer in self.quantizers:
            part = quantizer(left)
            total, left = total + part.z_q.detach(), left - part.z_q.detach()
            indices.append(part.indices)
            loss = loss + part.loss
            terms = {name: terms.get(name, 0) + term for name, term in part.losses.items()}
        z_q = z + (total - z).detach()
        return companion.quantizers.Quantized(z_q, torch.stack(indices, -1), loss, terms)


def rates_by_number(indices, num_codes):
    stacks = indices.reshape(-1, indices.shape[-1])

    def bits(codes):
        p = torch.bincount(codes).double() / len(codes)
        return -torch.xlogy(p, p).sum().item() / math.log(2)

    depth = stacks.shape[1]
    return {
        "nominal": depth * math.log2(num_codes),
        "entropy": sum(bits(one) for one in stacks.T),
        "joint": bits((stacks * num_codes ** torch.arange(depth)).sum(1)),
    }


def rates_by_distributions(indices, num_codes):
    stacks = indices.flatten(0, -2)

    def bits(counts):  # of a single stack: nearly 0, but for rounding
        return torch.distributions.Categorical(counts.double()).entropy().item() / math.log(2)

    return {
        "nominal": stacks.shape[1] * math.log2(num_codes),
        "entropy": math.fsum(bits(torch.bincount(codes, minlength=num_codes)) for codes in stacks.unbind(1)),
        "joint": bits(torch.unique(stacks, dim=0, return_counts=True)[1]),
    }


def classes_by_label(codes, labels, num_codes, num_classes, dropped=None):
    labels = torch.full((len(codes),), num_classes) if labels is None else labels
    labels = labels if dropped is None else torch.where(dropped, num_classes, labels)
    return torch.cat([(num_codes + labels)[:, None], codes.flatten(1)[:, :-1]], 1)


class AttentionWithAMask(AttentionWeights):
    """Kept as a buffer that is not saved, so that weights load both ways."""

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        self.register_buffer("mask", torch.ones(64, 64, dtype=torch.bool).triu(1), persistent=False)

    def forward(self, x):
        scores, v = self.scores(x)
        return self.gathered(scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]], -torch.inf).softmax(-1), v)


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("residual_encode", encode_into_a_copy),
        ("ResidualQuantizer", QuantizerByAddition),
        ("rate_bits", rates_by_number),
        ("rate_bits", rates_by_distributions),
        ("CausalSelfAttention", AttentionWithAMask),
        ("conditional_inputs", classes_by_label),
        ("cached_attention", one_step),
        ("cached_attention", one_step_into_a_buffer),
    ],
)
def test_other_right_answers_pass_the_inputs_that_tell_wrong_ones(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text
