"""Priors: what each logit sees, losses, sampling with and without a cache, filters, and errors by name."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import companion
from companion.priors import (
    MambaPrior,
    PixelCNN,
    Prior,
    RQTransformer,
    TransformerPrior,
    filtered_probabilities,
    prior_bits,
)
from companion.priors.sampling import draw, guided
from companion.priors.transformer import CausalSelfAttention, Transformer, causal_attention

SMALL = {"dim": 16, "num_classes": 3}
MAKE = {
    "transformer": lambda **o: TransformerPrior(7, (3, 4), **SMALL | {"layers": 2, "heads": 2} | o),
    "flattened": lambda **o: TransformerPrior(7, (2, 3, 2), **SMALL | {"layers": 2, "heads": 2} | o),
    "rq-transformer": lambda **o: RQTransformer(7, (2, 3, 2), **SMALL | {"layers": 2, "heads": 2} | o),
    "deep stack": lambda **o: RQTransformer(5, (2, 2, 4), **SMALL | {"layers": 1, "depth_layers": 1, "heads": 4} | o),
    "audio": lambda **o: RQTransformer(7, (6, 2), **SMALL | {"layers": 2, "heads": 2} | o),
    "video": lambda **o: RQTransformer(5, (2, 1, 3, 2), **SMALL | {"layers": 1, "depth_layers": 1, "heads": 2} | o),
    "flattened video": lambda **o: TransformerPrior(7, (2, 1, 3, 2), **SMALL | {"layers": 1, "heads": 2} | o),
    "a row": lambda **o: TransformerPrior(7, (12,), **SMALL | {"layers": 2, "heads": 2} | o),
    "mamba": lambda **o: MambaPrior(7, (3, 4), **SMALL | {"layers": 2, "state": 5, "head_dim": 8} | o),
    "flattened mamba": lambda **o: MambaPrior(7, (2, 3, 2), **SMALL | {"layers": 2, "state": 3, "head_dim": 4} | o),
    "pixelcnn": lambda **o: PixelCNN(7, (3, 4), **SMALL | {"layers": 3, "kernel": 3} | o),
}


def prior(kind: str, **options) -> Prior:
    """One with weights of which none is zero, so that what could flow does flow."""
    torch.manual_seed(0)
    made = MAKE[kind](**options).double()
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_(std=0.3)
    return made.eval()


def codes_of(made: Prior, n: int = 2, seed: int = 1) -> Tensor:
    return torch.randint(0, made.num_codes, (n, *made.grid), generator=torch.Generator().manual_seed(seed))


# Causality ---------------------------------------------------------------------------------------------------------


def seen_by_each_logit(made: Prior) -> Tensor:
    """(N, N): does logit i change when code j changes? Measured by the gradient at the embedding of code j."""
    codes = codes_of(made, 1)
    leaves: list[Tensor] = []

    def embed(self: object, given: Tensor) -> Tensor:
        vectors = original(given).detach().requires_grad_()
        leaves.append(vectors)
        return vectors

    if isinstance(made, RQTransformer):
        original = made._embed
        made._embed = lambda given: embed(made, given)  # type: ignore[method-assign]
    else:
        original = made.codes.forward
        made.codes.forward = lambda given: embed(made, given)  # type: ignore[method-assign]
    logits = made.all_logits(codes, torch.tensor([0])).reshape(made.length, -1)
    (vectors,) = leaves
    seen = torch.zeros(made.length, made.length, dtype=torch.bool)
    weights = torch.randn(made.num_codes, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for i in range(made.length):
        (grad,) = torch.autograd.grad((logits[i] * weights).sum(), vectors, retain_graph=True, allow_unused=True)
        reached = torch.zeros(vectors.shape[:-1]) if grad is None else grad.abs().sum(-1)
        reached = reached.flatten()[: made.length]
        seen[i, : len(reached)] = reached > 0
    return seen


@pytest.mark.parametrize("kind", MAKE)
def test_there_is_a_class_for_each_image(kind):
    model = prior(kind)
    codes = torch.zeros(4, *model.grid, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"classes: got int64 of shape \(3,\), want .*\(4,\)"):
        model.all_logits(codes, torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "pixelcnn"])
def test_each_logit_sees_exactly_the_codes_before_it(kind):
    """Logit i depends on no code ≥ i, and on all of 0 … i − 1."""
    seen = seen_by_each_logit(prior(kind))
    n = len(seen)
    assert torch.equal(seen, torch.ones(n, n, dtype=torch.bool).tril(-1))


def test_pixelcnn_sees_the_codes_before_it_within_its_reach_and_has_no_blind_spot():
    seen = seen_by_each_logit(prior("pixelcnn", layers=4))
    n = len(seen)
    assert torch.equal(seen, torch.ones(n, n, dtype=torch.bool).tril(-1))
    short = seen_by_each_logit(prior("pixelcnn", layers=1))
    assert not bool(short.triu().any())
    assert not bool(short[n - 1, 0])  # out of reach of one layer
    assert bool(short[n - 1, n - 2])


class Shifted(TransformerPrior):
    """The wrong version: one position too many goes in, and logits are read one late: each sees its own code."""

    def all_logits(self, codes: Tensor, starts: Tensor) -> Tensor:
        h = self.codes(codes.flatten(1)) + self.positions
        out: Tensor = self.to_logits(self.transformer(h))
        return out.reshape(*codes.shape, self.num_codes)


def test_the_shifted_logits_would_be_seen():
    torch.manual_seed(0)
    seen = seen_by_each_logit(Shifted(7, (3, 4), dim=16, layers=1, heads=2).double())
    assert bool(seen.diagonal().all())


@pytest.mark.parametrize("kind", MAKE)
def test_loss_is_the_cross_entropy_of_all_codes_code_zero_among_them(kind):
    """`ignore_index=0` would leave out code 0, and a `<sos>` that is code 0 would collide with it."""
    made = prior(kind)
    zeros = torch.zeros(2, *made.grid, dtype=torch.int64)
    for codes in (codes_of(made), zeros):
        out = made(codes, torch.tensor([0, 2]))
        expected = -out.logits.log_softmax(-1).gather(-1, codes[..., None]).mean()
        torch.testing.assert_close(out.loss, expected)
        assert out.logits.shape == (*codes.shape, made.num_codes)
    with_zero_ignored = functional.cross_entropy(
        made(zeros).logits.reshape(-1, made.num_codes), zeros.flatten(), ignore_index=0
    )
    assert with_zero_ignored.isnan()
    assert made(zeros).loss.isfinite()
    assert made.sos.num_embeddings == 4  # three classes and "no class", in a table of their own
    if not isinstance(made, RQTransformer):
        assert made.codes.num_embeddings == made.num_codes


@pytest.mark.parametrize("kind", MAKE)
def test_the_label_matters_and_none_is_a_label_of_its_own(kind):
    made = prior(kind)
    codes = codes_of(made, 1)
    losses = [made.loss(codes, label).item() for label in (None, *torch.arange(3)[:, None])]
    assert len({round(value, 9) for value in losses}) == 4


@pytest.mark.parametrize("kind", MAKE)
def test_it_learns(kind):
    torch.manual_seed(0)
    made = MAKE[kind]()
    codes, labels = codes_of(made, 6), torch.arange(6) % 3
    adam = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(150):
        adam.zero_grad()
        made.loss(codes, labels).backward()
        adam.step()
    assert made.loss(codes, labels).item() < 0.3 * math.log(made.num_codes)


def test_label_dropout_trains_the_empty_label():
    torch.manual_seed(0)
    made = MAKE["transformer"](label_dropout=0.5).train()
    made.loss(codes_of(made, 64), torch.zeros(64, dtype=torch.int64)).backward()
    got = made.sos.weight.grad.abs().sum(1) > 0
    assert got.tolist() == [True, False, False, True]
    made.eval()
    made.zero_grad()
    made.loss(codes_of(made, 64), torch.zeros(64, dtype=torch.int64)).backward()
    assert (made.sos.weight.grad.abs().sum(1) > 0).tolist() == [True, False, False, False]


def test_dropout_is_off_in_eval_mode():
    made = prior("transformer", dropout=0.5)
    codes = codes_of(made)
    assert torch.equal(made(codes).logits, made(codes).logits)
    made.train()
    assert not torch.equal(made(codes).logits, made(codes).logits)


# Sampling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKE)
def test_cached_logits_are_those_of_teacher_forcing(kind):
    made = prior(kind)
    codes = codes_of(made, 3)
    starts = torch.tensor([0, 2, 3])
    with torch.no_grad():
        expected = made.all_logits(codes, starts).flatten(1, -2)
        for cache in (True, False):
            steps = made.steps(starts, cache=cache)
            got = torch.stack([steps.logits(codes.flatten(1), i) for i in range(made.length)], 1)
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 3}, {"top_p": 0.8}])
def test_a_sample_is_the_same_with_and_without_cache_and_for_any_batches(kind, options):
    made = prior(kind)

    def drawn(**more) -> Tensor:
        label = torch.arange(9) % 3
        return made.sample(9, label, generator=torch.Generator().manual_seed(5), **options | more)

    first = drawn()
    assert first.shape == (9, *made.grid)
    for more in ({"cache": False}, {"batch_size": 2}, {"batch_size": 4, "cache": False}):
        assert torch.equal(drawn(**more), first)


@pytest.mark.parametrize("kind", MAKE)
def test_nothing_is_left_attached_to_the_model_after_sampling(kind):
    made = prior(kind).train()
    before = {name: set(vars(module)) for name, module in made.named_modules()}
    state = {name: value.clone() for name, value in made.state_dict().items()}
    made.sample(3, 1)
    assert {name: set(vars(module)) for name, module in made.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    assert made.training


def test_samples_follow_the_distribution_of_the_model():
    """Two codes of two: the four tables come as often as the chain rule says."""
    torch.manual_seed(0)
    made = TransformerPrior(2, (1, 2), dim=8, layers=1, heads=2)
    with torch.no_grad():
        for weight in made.parameters():
            weight.normal_()
    tables = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])[:, None]  # (4, 1, 2)
    log_p = made.eval().all_logits(tables, torch.zeros(4, dtype=torch.int64)).log_softmax(-1)
    p = log_p.gather(-1, tables[..., None]).sum((1, 2, 3)).exp()
    torch.testing.assert_close(p.sum(), torch.tensor(1.0))
    n = 20_000
    drawn = made.sample(n, generator=torch.Generator().manual_seed(0), batch_size=n).flatten(1)
    share = torch.bincount(drawn[:, 0] * 2 + drawn[:, 1], minlength=4) / n
    assert bool(((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all())


def test_a_start_that_training_with_labels_never_moves_is_warned_of():
    made, codes = prior("transformer"), codes_of(prior("transformer"))
    calls = {
        "label": [lambda: made.eval().sample(2)],
        "labels": [
            lambda: prior_bits(made.eval(), codes), lambda: made.train()(codes), lambda: made.train().loss(codes),
            lambda: torch.nn.Sequential(made.train())(codes),
        ],
    }  # fmt: skip
    for name, call in [(name, call) for name, all_ in calls.items() for call in all_]:
        with pytest.warns(UserWarning, match=f"{name}: got None for a prior of 3 classes") as caught:
            call()
        assert caught[0].filename == __file__
        assert caught[0].lineno == call.__code__.co_firstlineno
    made.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.sample(2, 1)
        prior_bits(made, codes, torch.tensor([0, 2]))
        for trained in (prior("transformer", label_dropout=0.1), prior("transformer", num_classes=0)):
            trained.sample(2)
            prior_bits(trained, codes)


def test_temperature_zero_is_the_likeliest_code_at_each_step():
    made = prior("transformer")
    drawn = made.sample(2, 0, temperature=0)
    logits = made.all_logits(drawn, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(logits.argmax(-1), drawn)


def test_guidance_of_one_is_the_conditional_and_more_moves_away_from_the_unconditional():
    made = prior("transformer", label_dropout=0.1)
    c, u = torch.randn(4, 7), torch.randn(4, 7)
    torch.testing.assert_close(guided(c, u, 1.0).softmax(-1), c.softmax(-1))
    torch.testing.assert_close(guided(c, u, 0.0).softmax(-1), u.softmax(-1))
    plain = made.sample(4, 1, generator=torch.Generator().manual_seed(0))
    strong = made.sample(4, 1, generator=torch.Generator().manual_seed(0), guidance=3.0)
    again = made.sample(4, 1, generator=torch.Generator().manual_seed(0), guidance=3.0, cache=False, batch_size=3)
    assert not torch.equal(plain, strong)
    assert torch.equal(strong, again)


# A prefix ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("cache", [True, False])
def test_after_a_prefix_comes_what_would_come_after_these_codes(kind, cache):
    """Exactly: the codes of a sample, given back in part, bring the rest of the sample."""
    made = prior(kind, label_dropout=0.1)
    label = torch.arange(5) % 3

    def drawn(**more) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return made.sample(5, label, generator=generator, guidance=1.5, cache=cache, **more)

    whole = drawn()
    prefixes = [whole[:, :1], whole[:, : made.grid[0]]]  # rows, frames or positions, and the whole table
    if isinstance(made, RQTransformer):
        stacks = whole.flatten(1, -2)  # (5, positions, R)
        prefixes += [stacks[:, :1], stacks[:, :3]]
    else:
        prefixes += [whole.flatten(1)[:, :1], whole.flatten(1)[:, :5]]
    for prefix in prefixes:
        assert torch.equal(drawn(prefix=prefix), whole)
        assert torch.equal(drawn(prefix=prefix, batch_size=2), whole)
    other = (whole[:, :1] + 1) % made.num_codes
    assert torch.equal(drawn(prefix=other)[:, :1], other)


@pytest.mark.parametrize("kind", MAKE)
def test_the_likeliest_codes_after_a_prefix_are_those_of_teacher_forcing(kind):
    made = prior(kind)
    prefix = codes_of(made, 4)[:, :1]
    drawn = made.sample(4, 1, prefix=prefix, temperature=0)
    assert torch.equal(drawn[:, :1], prefix)
    likeliest = made.all_logits(drawn, torch.ones(4, dtype=torch.int64)).argmax(-1)
    assert torch.equal(likeliest[:, 1:], drawn[:, 1:])


@pytest.mark.parametrize(("kind", "network"), [("transformer", "transformer"), ("audio", "spatial")])
def test_a_prefix_is_read_in_one_pass(kind, network, monkeypatch):
    made = prior(kind)
    positions = made.length // (2 if kind == "audio" else 1)
    calls = []
    forward = Transformer.forward
    monkeypatch.setattr(
        Transformer,
        "forward",
        lambda self, x, caches=None: calls.append((self, x.shape[1])) or forward(self, x, caches),
    )
    made.sample(2, 1, prefix=codes_of(made).flatten(1, -2 if kind == "audio" else -1)[:, :4])
    seen = [length for one, length in calls if one is getattr(made, network)]
    assert seen == [4] + [1] * (positions - 4)


@pytest.mark.parametrize(
    ("kind", "prefix", "says"),
    [
        (
            "transformer",
            torch.zeros(3, 2, dtype=torch.int64),
            r"\(4, P\) or \(4, P, 4\), the first codes of .*\(4, 3, 4\)",
        ),
        ("transformer", torch.zeros(4, 13, dtype=torch.int64), r"prefix: got int64 of shape \(4, 13\)"),
        ("transformer", torch.zeros(4, 0, dtype=torch.int64), r"prefix: got int64 of shape \(4, 0\)"),
        ("transformer", torch.zeros(4, 2, 3, dtype=torch.int64), r"prefix: got int64 of shape \(4, 2, 3\)"),
        ("transformer", torch.zeros(4, dtype=torch.int64), r"prefix: got int64 of shape \(4,\)"),
        ("transformer", torch.zeros(4, 2), "prefix: got float32"),
        ("transformer", torch.full((4, 2), 7), "prefix: got 7 to 7, want 0 to 6"),
        ("transformer", [[1], [2], [3], [4]], r"prefix: got \[\[1\], .*, want a tensor"),
        ("audio", torch.zeros(4, 3, dtype=torch.int64), r"prefix: .* want int64 of shape \(4, P, 2\), the first codes"),
        (
            "video",
            torch.zeros(4, 3, dtype=torch.int64),
            r"want .* \(4, P, 2\) or \(4, P, 3, 2\) or \(4, P, 1, 3, 2\), the",
        ),
    ],
)
def test_a_prefix_that_is_none_is_refused(kind, prefix, says):
    with pytest.raises(ValueError, match=says):
        prior(kind).sample(4, 1, prefix=prefix)


# Padding -------------------------------------------------------------------------------------------------------------


def lengths_mask(made: Prior, n: int) -> Tensor:
    """(n, *grid): the first image has all its codes, each other fewer, in whole positions."""
    r = made.grid[-1] if isinstance(made, RQTransformer) else 1
    positions = made.length // r
    lengths = positions - torch.arange(n) % positions
    mask = torch.arange(positions) < lengths[:, None]
    return mask[..., None].expand(-1, -1, r).reshape(n, *made.grid)


@pytest.mark.parametrize("kind", MAKE)
def test_padding_plays_no_part_in_the_loss_and_its_gradients(kind):
    made = prior(kind)
    codes, labels = codes_of(made, 4), torch.arange(4) % 3
    mask = lengths_mask(made, 4)

    def loss_and_gradients(codes: Tensor) -> tuple[Tensor, list[Tensor]]:
        made.zero_grad()
        loss = made.loss(codes, labels, mask=mask)
        loss.backward()
        return loss.detach(), [weight.grad.clone() for weight in made.parameters()]

    loss, gradients = loss_and_gradients(codes)
    log_p = made(codes, labels).logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(loss, -log_p[mask].mean().detach())
    assert not torch.allclose(loss, -log_p.mean())  # the wrong version: padding is learnt too
    for padding in (-1, 0, made.num_codes - 1, 10**9):
        other_loss, other = loss_and_gradients(codes.where(mask, padding))
        torch.testing.assert_close(other_loss, loss, rtol=0, atol=1e-12)
        for one, two in zip(gradients, other, strict=True):
            torch.testing.assert_close(two, one, rtol=0, atol=1e-12)


def test_the_embedding_of_padding_gets_no_gradient():
    made = prior("a row")
    codes = torch.tensor([[3, 4, 5] + [6] * 9])
    made.loss(codes.where(codes < 6, 6), torch.tensor([0]), mask=codes < 6).backward()
    moved = made.codes.weight.grad.abs().sum(1) > 0
    assert moved.tolist() == [False, False, False, True, True, False, False]  # nothing is predicted after 5
    made.zero_grad()
    made.loss(codes, torch.tensor([0])).backward()  # the wrong version
    assert bool(made.codes.weight.grad[6].any())


def test_a_mask_of_positions_is_one_of_all_their_codes_and_code_0_counts_like_others():
    made = prior("audio")
    codes = codes_of(made, 3)
    positions = torch.arange(6) < torch.tensor([6, 2, 4])[:, None]
    wide = positions[..., None].expand(-1, -1, 2)
    torch.testing.assert_close(made.loss(codes, mask=positions[..., None]), made.loss(codes, mask=wide))
    zeros = torch.zeros_like(codes)
    log_p = made(zeros).logits.log_softmax(-1)[..., 0]
    torch.testing.assert_close(made.loss(zeros, mask=wide), -log_p[wide].mean())
    everything = torch.ones(3, 6, 2, dtype=torch.bool)
    torch.testing.assert_close(made.loss(codes, mask=everything), made.loss(codes))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(2, 3, 4), r"mask: got float32 of shape \(2, 3, 4\), want bool of shape \(2, 3, 4\)"),
        (torch.ones(2, 12, dtype=torch.bool), r"mask: got bool of shape \(2, 12\)"),
        (torch.ones(1, 3, 4, dtype=torch.bool), r"mask: got bool of shape \(1, 3, 4\)"),
        (torch.zeros(2, 3, 4, dtype=torch.bool), "mask: got False everywhere, want True for at least one code"),
        ([True], r"mask: got \[True\], want a tensor"),
    ],
)
def test_a_mask_that_is_none_is_refused(mask, says):
    made = prior("transformer")
    with pytest.raises(ValueError, match=says):
        made.loss(codes_of(made), torch.tensor([0, 1]), mask=mask)
    with pytest.raises(ValueError, match="codes: got -1"):  # a code that counts is looked at all the same
        made.loss(codes_of(made) * 0 - 1, torch.tensor([0, 1]), mask=torch.ones(2, 3, 4, dtype=torch.bool))


# Filters -----------------------------------------------------------------------------------------------------------


LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.0625, 0.0625]).log()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 4}, [0.5, 0.25, 0.125, 0.0625, 0.0625]),  # the fourth and the fifth are alike: both stay
        ({"top_p": 0.5}, [1.0, 0, 0, 0, 0]),
        ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_p": 1.0}, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
        ({"top_k": 3, "top_p": 0.6}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"temperature": 0}, [1.0, 0, 0, 0, 0]),
        (
            {"temperature": 0.5},
            [0.25 / 0.3359375, 0.0625 / 0.3359375, 0.015625 / 0.3359375] + [0.00390625 / 0.3359375] * 2,
        ),
    ],
)
def test_filtered_probabilities_by_hand(options, expected):
    torch.testing.assert_close(filtered_probabilities(LOGITS, **options), torch.tensor(expected))


@settings(deadline=None)
@given(
    n=st.integers(1, 5),
    k=st.integers(1, 9),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    top_p=st.sampled_from([None, 0.01, 0.5, 0.99, 1.0]),
)
def test_filtered_probabilities_are_a_distribution_and_what_is_drawn_has_some(n, k, seed, temperature, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(n, k, generator=generator)
    p = filtered_probabilities(logits, temperature=temperature, top_k=(seed % k) + 1, top_p=top_p)
    torch.testing.assert_close(p.sum(-1), torch.ones(n))
    for u in (torch.zeros(n), torch.rand(n, generator=generator), torch.full((n,), 1 - 1e-7)):
        codes = draw(p, u)
        assert bool((p.gather(1, codes[:, None]) > 0).all())


# Errors, bits, files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -1.0}, "temperature: got -1"),
        ({"temperature": math.nan}, "temperature: got nan"),
        ({"temperature": 1e-320}, "temperature: got 1e-320, want 0"),
        ({"top_k": 8}, "top_k: got 8, want a whole number from 1 to 7"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_p": 0.0}, "top_p: got 0"),
        ({"top_p": 1.5}, "top_p: got 1.5"),
        ({"label": 3}, "label: got 3 to 3, want 0 to 2"),
        ({"label": -1}, "label: got -1"),
        ({"label": torch.tensor([0, 1])}, r"label: got int64 of shape \(2,\), want int64 of shape \(4,\)"),
        ({"label": [3]}, r"label: got \[3\], want a class .* an int64 tensor \(4,\) of classes, or None"),
        ({"guidance": math.nan}, "guidance: got nan"),
        ({"top_k": 1.5}, "top_k: got 1.5"),
        ({"generator": 3}, "generator: got 3"),
        ({"label": 1, "guidance": -1.0}, r"guidance: got -1\.0, want a finite number, at least 0"),
        ({"guidance": 2.0}, "guidance"),
        ({"label": 1, "guidance": 2.0}, "guidance"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_sampling_refuses_what_is_out_of_range_by_name(options, says):
    with pytest.raises(ValueError, match=says):
        prior("transformer").sample(4, **options)


def test_a_filled_cache_takes_one_position_at_a_time():
    """The mask of several queries would begin at the first key, and hide from them what came before."""
    torch.manual_seed(0)
    model = Transformer(8, 2, 2).eval()
    x = torch.randn(2, 6, 8)
    caches = model.new_caches(2, 6, x)
    parts = [model(part, caches) for part in (x[:, :3], x[:, 3:4])]  # several begin an empty one
    torch.testing.assert_close(torch.cat(parts, 1), model(x)[:, :4])
    with pytest.raises(ValueError, match="x: got 2 positions beside 4 in the cache, want one"):
        model(x[:, 4:], caches)
    for position in (4, 5):
        model(x[:, position : position + 1], caches)
    with pytest.raises(ValueError, match=r"x: got 1 positions beside 6 in the cache, want .* at most 0"):
        model(x[:, :1], caches)
    q, k = torch.randn(2, 1, 6, 4)[:, :, 4:], torch.randn(2, 1, 6, 4)
    late = functional.scaled_dot_product_attention(q, k, k, is_causal=True)[:, :, 0]
    torch.testing.assert_close(late, k[:, :, 0])  # the wrong version: position 4 sees nothing but position 0


def test_nothing_is_drawn_where_no_code_is_likely():
    """Unchecked, the first gives NaN, the second the code −1, and the third an index error in the next step."""
    with pytest.raises(ValueError, match="logits: got a row of -inf only"):
        filtered_probabilities(torch.full((2, 5), -torch.inf))
    with pytest.raises(ValueError, match="probabilities: got a row of zeros"):
        draw(torch.zeros(2, 5), torch.rand(2))
    broken = prior("transformer")
    with torch.no_grad():
        broken.to_logits.weight.fill_(math.nan)
    with pytest.raises(ValueError, match=r"to_logits\.weight: got .* NaN"):
        broken.sample(1)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (
            torch.zeros(2, 3, 3, dtype=torch.int64),
            r"codes: got int64 of shape \(2, 3, 3\), want int64 of shape \(B, 3, 4\)",
        ),
        (torch.zeros(2, 3, 4), "codes: got float32"),
        (torch.full((2, 3, 4), 7), "codes: got 7 to 7, want 0 to 6"),
        (torch.full((2, 3, 4), -1), "codes: got -1"),
    ],
)
def test_codes_that_are_none_are_refused(codes, says):
    with pytest.raises(ValueError, match=says):
        prior("transformer").loss(codes)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: TransformerPrior(0, (2, 2)), "num_codes"),
        (lambda: TransformerPrior(4, ()), "grid"),
        (lambda: PixelCNN(4, (7,)), r"grid: got \(7,\), want \(h, w\)"),
        (
            lambda: TransformerPrior(4, (7, 7, 2, 2, 2)),
            r"grid: got \(7, 7, 2, 2, 2\), want \(T,\), \(h, w\) or \(t, h, w\)",
        ),
        (lambda: TransformerPrior(4, (2, 2), dim=10, heads=3), "heads: got 3"),
        (lambda: TransformerPrior(4, (2, 2), label_dropout=1.0), "label_dropout"),
        (lambda: TransformerPrior(4, (2, 2), label_dropout=0.1), r"label_dropout: got 0\.1, want 0 without classes"),
        (lambda: RQTransformer(4, (7,)), r"grid: got \(7,\), want \(T, R\), \(h, w, R\) or \(t, h, w, R\)"),
        (lambda: PixelCNN(4, (2, 2, 2)), r"grid: got \(2, 2, 2\), want \(h, w\)"),
        (lambda: PixelCNN(4, (2, 2), kernel=4), "kernel: got 4"),
        (lambda: TransformerPrior(4, (1, 1)).loss(torch.tensor([[[0]]]), torch.tensor([0])), "labels: got one"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_prior_bits_of_a_uniform_prior_are_the_nominal_bits():
    made = MAKE["transformer"](num_classes=0)
    with torch.no_grad():
        made.to_logits.weight.zero_()
        made.to_logits.bias.zero_()
    codes = codes_of(made, 10)
    nominal = companion.metrics.nominal_bits(7, (3, 4))
    for batch_size in (3, 10):
        assert prior_bits(made, codes, batch_size=batch_size) == pytest.approx(nominal, rel=1e-6)
    assert made.training


@pytest.mark.parametrize("kind", MAKE)
def test_saved_and_loaded_it_samples_the_same(kind, tmp_path, device):
    made = MAKE[kind]()
    companion.save(made, tmp_path / "prior.safetensors")
    again = companion.load(tmp_path / "prior.safetensors").to(device)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(again.sample(2, 1, generator=seeds[0]), made.sample(2, 1, generator=seeds[1]))


@pytest.mark.parametrize(("queries", "keys"), [(7, 7), (1, 5), (1, 1)], ids=["all", "newest of five", "first"])
def test_the_attention_that_is_written_out_is_the_fused_call(queries, keys):
    """One query alone is the newest position; the wrong version lets it see the first key only."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, queries, 4, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(2, 3, keys, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=queries > 1)
    torch.testing.assert_close(causal_attention(q, k, v), fused)
    if queries != keys:
        wrong = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        assert not torch.allclose(wrong, fused)


def test_self_attention_is_the_written_out_attention_of_each_head():
    torch.manual_seed(0)
    attention, x = CausalSelfAttention(12, 3), torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in attention.to_qkv(x).chunk(3, dim=-1))
    expected = attention.to_out(causal_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)
    moved = x.clone()
    moved[:, 3:] += 1  # the future of the first three positions
    torch.testing.assert_close(attention(moved)[:, :3], expected[:, :3])
    assert not torch.allclose(attention(moved)[:, 3], expected[:, 3])


def test_a_table_of_codes_that_is_far_too_large_is_said_at_construction():
    with pytest.warns(UserWarning, match="grid: got 262,144 codes in a row") as caught:
        prior = TransformerPrior(4, (512, 512), dim=2, heads=1, layers=1)
    assert prior.length == 512 * 512
    assert caught[0].filename == __file__


def test_many_small_probabilities_are_drawn_alike_in_half_precision():
    """Summed up in bfloat16, steps of 1/256 near 1 swallow most of 2,048 codes: the wrong version draws few of them."""
    logits = torch.zeros(1, 2_048, dtype=torch.bfloat16)
    uniform = torch.linspace(0, 1 - 1e-6, 2_048)
    probabilities = filtered_probabilities(logits).expand(2_048, -1)
    assert probabilities.dtype == torch.float32
    assert len(draw(probabilities, uniform).unique()) > 2_000
    in_half = probabilities.bfloat16().cumsum(-1)
    assert len((in_half <= uniform[:, None].bfloat16()).sum(-1).unique()) < 1_000


def test_a_top_p_of_one_keeps_every_code():
    logits = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)) - 5
    assert torch.equal(filtered_probabilities(logits, top_p=1.0), filtered_probabilities(logits))
    assert bool((filtered_probabilities(logits, top_p=1.0) > 0).all())


def test_a_table_of_another_grid_is_refused_by_all_logits():
    made = prior("transformer")
    with pytest.raises(ValueError, match=r"codes: got int64 of shape \(2, 1, 1\), want int64 of shape \(B, 3, 4\)"):
        made.all_logits(torch.zeros(2, 1, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
