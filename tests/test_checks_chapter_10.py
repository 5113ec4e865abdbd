"""Chapter 10: right answers written otherwise pass, wrong ones written otherwise get a hint."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from companion.backbones import SwiGLU, ssd_recurrence
from companion.course.chapter_10 import EXERCISES as OF_THE_CHAPTER
from companion.course.checks import examine
from companion.course.exercises import by_name

EXERCISES = by_name(OF_THE_CHAPTER)

# 10.1


def block_with(forward):
    class ConvNeXtBlock(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.norm1, self.norm2 = nn.RMSNorm(channels), nn.RMSNorm(channels)
            self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
            self.mlp = SwiGLU(channels)

    ConvNeXtBlock.forward = forward
    return ConvNeXtBlock


@block_with
def BlockByTranspose(self, x):
    x = x + self.depthwise(self.norm1(x.transpose(1, 3)).transpose(1, 3))
    return x + self.mlp(self.norm2(x.transpose(1, -1))).transpose(1, -1)


@block_with
def BlockByHand(self, x):
    """Norms written out over axis 1."""

    def norm(x, weight):
        shares = x.square().mean(1, keepdim=True) + torch.finfo(x.dtype).eps
        return x * shares.rsqrt() * weight[:, None, None]

    x = x + self.depthwise(norm(x, self.norm1.weight))
    return x + self.mlp(norm(x, self.norm2.weight).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@block_with
def BlockOfRows(self, x):
    """The pixels of all pictures in one row before the second branch."""
    b, c, h, w = x.shape
    x = self.depthwise(self.norm1(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)) + x
    rows = x.permute(0, 2, 3, 1).reshape(-1, c)
    return (rows + self.mlp(self.norm2(rows))).reshape(b, h, w, c).permute(0, 3, 1, 2)


@block_with
def block_reshaped(self, x):
    b, c, h, w = x.shape
    x = x + self.depthwise(self.norm1(x.reshape(b, h, w, c)).reshape(b, c, h, w))
    return x + self.mlp(self.norm2(x.reshape(b, h, w, c))).reshape(b, c, h, w)


@block_with
def block_whose_second_line_reads_the_input(self, x):
    y = x + self.depthwise(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
    return y + self.mlp(self.norm2(x.movedim(1, -1))).movedim(-1, 1)


@block_with
def block_without_moving(self, x):
    x = x + self.depthwise(self.norm1(x))
    return x + self.mlp(self.norm2(x))


@block_with
def block_with_a_sum_in_place(self, x):
    """The second norm needs the x that is written over."""
    x = x + self.depthwise(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
    x += self.mlp(self.norm2(x.movedim(1, -1))).movedim(-1, 1)
    return x


@block_with
def block_without_gradient(self, x):
    with torch.no_grad():
        x = x + self.depthwise(self.norm1(x.movedim(1, -1)).movedim(-1, 1))
    return x + self.mlp(self.norm2(x.movedim(1, -1))).movedim(-1, 1)


# 10.2


def patches_by_slices(x, patch):
    """Square by square."""
    rows, columns = (range(0, size, patch) for size in x.shape[2:])
    return torch.stack([x[:, :, i : i + patch, j : j + patch].flatten(1) for i in rows for j in columns], 1)


def patches_written(x, patch):
    b, c, height, width = x.shape
    h, w = height // patch, width // patch
    tokens = x.new_zeros(b, h * w, c * patch * patch)
    for i in range(h):
        for j in range(w):
            square = x[:, :, i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
            tokens[:, i * w + j] = square.reshape(b, -1)
    return tokens


def patches_by_einsum(x, patch):
    height, width = x.shape[2:]
    cut = x.unflatten(3, (width // patch, patch)).unflatten(2, (height // patch, patch))
    return torch.einsum("bchpwq->bhwcpq", cut).flatten(3).flatten(1, 2)


def patches_side_by_side_by_reshape(x, patch):
    b, c, height, width = x.shape
    squares = x.reshape(b, c, height // patch * (width // patch), patch, patch)
    return squares.transpose(1, 2).flatten(2)


def picture_by_fold(tokens, patch, grid):
    size = (grid[0] * patch, grid[1] * patch)
    return functional.fold(tokens.mT, size, patch, stride=patch)


def picture_by_rows(tokens, patch, grid):
    """Rows of patches put together, then the rows."""
    h, w = grid
    squares = tokens.unflatten(2, (tokens.shape[2] // patch**2, patch, patch))
    rows = [torch.cat([squares[:, i * w + j] for j in range(w)], -1) for i in range(h)]
    return torch.cat(rows, -2)


def picture_written(tokens, patch, grid):
    (b, t, n), (_, w) = tokens.shape, grid
    x = tokens.new_empty(b, n // patch**2, grid[0] * patch, w * patch)
    for k in range(t):
        i, j = divmod(k, w)
        x[..., i * patch : (i + 1) * patch, j * patch : (j + 1) * patch] = tokens[:, k].reshape(b, -1, patch, patch)
    return x


def picture_by_one_loop_too_many(tokens, patch, grid):
    """As picture_by_rows, with h where w should stand."""
    h, w = grid
    squares = tokens.unflatten(2, (tokens.shape[2] // patch**2, patch, patch))
    rows = [torch.cat([squares[:, j * h + i] for j in range(w)], -1) for i in range(h)]
    return torch.cat(rows, -2)


# 10.3


def recurrence_into_a_tensor(x, a, b, c):
    """With the memory as N × P, and the results written into a tensor."""
    h = torch.zeros(x.shape[0], b.shape[2], x.shape[2], dtype=x.dtype)
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        h = a[:, t].reshape(-1, 1, 1) * h + b[:, t].unsqueeze(2) @ x[:, t].unsqueeze(1)
        y[:, t] = (c[:, t].unsqueeze(1) @ h).squeeze(1)
    return y


def recurrence_by_products(x, a, b, c):
    """The matrix, entry by entry; no logarithm, so that a may be 0."""
    y = []
    for i in range(x.shape[1]):
        total, faded = torch.zeros_like(x[:, 0]), torch.ones_like(a[:, 0])
        for j in range(i, -1, -1):
            total = total + ((c[:, i] * b[:, j]).sum(1) * faded)[:, None] * x[:, j]
            faded = faded * a[:, j]
        y.append(total)
    return torch.stack(y, 1)


def recurrence_row_by_row(x, a, b, c):
    rows = []
    for x_, a_, b_, c_ in zip(x, a, b, c, strict=True):
        h, y = 0, []
        for t in range(len(x_)):
            h = a_[t] * h + torch.outer(x_[t], b_[t])
            y.append(h @ c_[t])
        rows.append(torch.stack(y))
    return torch.stack(rows)


def recurrence_with(*, in_place=False, read_first=False, logarithm=False):
    def recurrence(x, a, b, c):
        h, y = x.new_zeros(x.shape[0], x.shape[2], b.shape[2]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            before = (h @ c[:, t, :, None])[..., 0]
            fading = (a.exp() if logarithm else a)[:, t, None, None]
            if in_place:
                h.mul_(fading).add_(x[:, t, :, None] * b[:, t, None])
            else:
                h = h * fading + x[:, t, :, None] * b[:, t, None]
            y[:, t] = before if read_first else (h @ c[:, t, :, None])[..., 0]
        return y

    return recurrence


def recurrence_by_logarithms(x, a, b, c):
    """Right for all a but 0, which the chapter's selective memory has."""
    s = a.log().cumsum(1)
    return ((s[:, :, None] - s[:, None]).exp().tril() * (c @ b.mT)) @ x


# 10.4


def chunks_side_by_side(x, a, b, c, chunk):
    """All chunks at once, filled up; sums along each segment, as the paper's listing has them."""
    length = x.shape[1]
    missing = -length % chunk
    x, b, c = (functional.pad(part, (0, 0, 0, missing)).unflatten(1, (-1, chunk)) for part in (x, b, c))
    logs = functional.pad(a.log(), (0, missing)).unflatten(1, (-1, chunk))  # (B, K, Q)
    lower = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    segments = logs[..., None].expand(*logs.shape, chunk).masked_fill(~lower.tril(-1), 0).cumsum(-2)
    fading = segments.masked_fill(~lower, -torch.inf).exp()
    inside = (fading * (c @ b.mT)) @ x
    s = logs.cumsum(-1)
    new = x.mT @ (b * (s[..., -1:] - s).exp()[..., None])
    h, before = torch.zeros_like(new[:, 0]), []
    for k in range(new.shape[1]):
        before.append(h)
        h = s[:, k, -1].exp()[:, None, None] * h + new[:, k]
    read = s.exp()[..., None] * (c @ torch.stack(before, 1).mT)
    return (inside + read).flatten(1, 2)[:, :length]


def chunks_with(fading, to_end=lambda s, a: (s[:, -1:] - s).exp(), *, h_first=False):
    """With einsum, and the result written into a tensor; ``fading`` gets the sums of logarithms and the factors."""

    def chunked(x, a, b, c, chunk):
        y, h = torch.zeros_like(x), x.new_zeros(x.shape[0], b.shape[2], x.shape[2])
        for k in range(-(-x.shape[1] // chunk)):
            at = slice(k * chunk, (k + 1) * chunk)
            s = a[:, at].log().cumsum(-1)
            new = torch.einsum("btn,btp,bt->bnp", b[:, at], x[:, at], to_end(s, a[:, at]))
            later = s[:, -1:, None].exp() * h + new
            table = torch.einsum("bin,bjn,bij->bij", c[:, at], b[:, at], fading(s, a[:, at]))
            read = torch.einsum("bin,bnp,bi->bip", c[:, at], later if h_first else h, s.exp())
            y[:, at] = table @ x[:, at] + read
            h = later
        return y

    return chunked


def masked_before(s, a):
    apart = s.unsqueeze(2) - s.unsqueeze(1)
    return torch.where(torch.ones_like(apart).tril() > 0, apart, -torch.inf).exp()


def limited_before(s, a):
    """Differences above the diagonal kept at 0, and masked after exp as well."""
    return (s[:, :, None] - s[:, None]).clamp(max=0).exp().tril()


def in_float64(s, a):
    return masked_before(a.double().log().cumsum(1), a).to(a)


def masked_after(s, a):
    return (s[:, :, None] - s[:, None]).exp().tril()


def masked_after_by_where(s, a):
    table = (s[:, :, None] - s[:, None]).exp()
    return torch.where(torch.ones_like(table).tril() > 0, table, 0)


def quotients(s, a):
    running = a.cumprod(1)
    return torch.tril(running[:, :, None] / running[:, None])


def quotients_of_the_end(s, a):
    running = a.cumprod(1)
    return running[:, -1:] / running


def products_by_steps(x, a, b, c, chunk):
    """Right, but a loop over the steps inside of each chunk."""
    h, y = x.new_zeros(x.shape[0], x.shape[2], b.shape[2]), []
    for start in range(0, x.shape[1], chunk):
        for t in range(start, min(start + chunk, x.shape[1])):
            h = a[:, t, None, None] * h + x[:, t, :, None] * b[:, t, None]
            y.append((h * c[:, t, None]).sum(-1))
    return torch.stack(y, 1)


def chunks_of(length):
    """Whatever was asked for."""
    return lambda x, a, b, c, chunk: chunks_with(masked_before)(x, a, b, c, length)


def whole_matrix(x, a, b, c, chunk):
    s = a.log().cumsum(1)
    return (masked_before(s, a) * (c @ b.mT)) @ x


# 10.5


def both_by_index(tokens, forwards, backwards):
    order = torch.arange(tokens.shape[1]).flip(0)
    return backwards(tokens[:, order])[:, order] + forwards(tokens)


def both_in_place(tokens, forwards, backwards):
    said = backwards(torch.flip(tokens, dims=[-2])).flip(-2)
    said = said + 0
    said += forwards(tokens)
    return said


def both_by_a_list(tokens, forwards, backwards):
    last_first = torch.stack(tokens.unbind(1)[::-1], 1)
    return torch.stack(backwards(last_first).unbind(1)[::-1], 1).add(forwards(tokens))


@pytest.mark.parametrize(
    ("exercise", "right"),
    [
        ("ConvNeXtBlock", BlockByTranspose),
        ("ConvNeXtBlock", BlockByHand),
        ("ConvNeXtBlock", BlockOfRows),
        ("patchify", patches_by_slices),
        ("patchify", patches_written),
        ("patchify", patches_by_einsum),
        ("patchify", lambda x, patch: functional.unfold(x, patch, stride=patch).mT),
        ("patchify", lambda x, patch: functional.pixel_unshuffle(x, patch).flatten(2).mT),
        ("unpatchify", picture_by_fold),
        ("unpatchify", picture_by_rows),
        ("unpatchify", picture_written),
        ("unpatchify", lambda tokens, patch, grid: functional.pixel_shuffle(tokens.mT.unflatten(2, grid), patch)),
        ("recurrence", recurrence_into_a_tensor),
        ("recurrence", recurrence_by_products),
        ("recurrence", recurrence_row_by_row),
        ("recurrence", recurrence_with()),
        ("both_ways", lambda tokens, f, b: torch.cat([f(t[None]) + b(t[None].flip(1)).flip(1) for t in tokens])),
        ("chunked", chunks_side_by_side),
        ("chunked", chunks_with(masked_before)),
        ("chunked", chunks_with(limited_before)),
        ("chunked", chunks_with(in_float64)),
        ("both_ways", both_by_index),
        ("both_ways", both_in_place),
        ("both_ways", both_by_a_list),
    ],
)
def test_right_answers_written_otherwise_pass(exercise, right):
    report = examine(EXERCISES[exercise], right)
    assert report.status == "matches", report.text


@pytest.mark.parametrize(
    ("exercise", "wrong", "hint"),
    [
        ("ConvNeXtBlock", block_whose_second_line_reads_the_input, "both branches read the block's input"),
        ("ConvNeXtBlock", block_without_moving, "the width of the picture"),
        ("ConvNeXtBlock", block_with_a_sum_in_place, "autograd still needs"),
        ("ConvNeXtBlock", block_without_gradient, "no gradient arrives"),
        ("patchify", lambda x, patch: x.reshape(x.shape[0], -1, x[0].shape[0] * patch * patch), "moves no numbers"),
        ("patchify", lambda x, patch: functional.unfold(x, patch, stride=patch), "a token is a *row*"),
        ("patchify", lambda x, patch: patches_by_slices(x.mT, patch), "rows and columns are mixed up"),
        ("patchify", lambda x, patch: patches_by_slices(x, patch).contiguous().data, "cut off from x"),
        ("patchify", lambda x, patch: patches_by_slices(x, 4), "fixed at 4"),
        ("patchify", patches_side_by_side_by_reshape, "reshape cannot make squares"),
        ("unpatchify", lambda tokens, patch, grid: picture_by_rows(tokens, patch, grid[::-1]), "it is (h, w)"),
        ("unpatchify", picture_by_one_loop_too_many, "column by column"),
        ("unpatchify", lambda *given: picture_by_fold(*given).permute(0, 2, 3, 1), "as for imshow"),
        ("unpatchify", lambda *given: picture_by_rows(*given).transpose(2, 3), "lies on its side"),
        ("recurrence", recurrence_with(in_place=True), "in place"),
        ("recurrence", recurrence_with(read_first=True), "*before* step t"),
        ("recurrence", recurrence_with(logarithm=True), "a is taken for a logarithm"),
        ("recurrence", recurrence_by_logarithms, "a may be 0"),
        ("recurrence", lambda x, a, b, c: recurrence_into_a_tensor(x, a, c, b), "b and c are exchanged"),
        ("chunked", chunks_with(quotients), "cumprod"),
        ("chunked", chunks_with(masked_before, quotients_of_the_end), "cumprod"),
        ("chunked", chunks_with(masked_after), "*before* exp"),
        ("chunked", chunks_with(masked_after_by_where), "*before* exp"),
        ("chunked", chunks_with(lambda s, a: masked_before(s, a) * (s[:, :, None] != s[:, None])), "the diagonal"),
        ("chunked", chunks_with(masked_before, h_first=True), "y first, then h"),
        ("chunked", products_by_steps, "loop over its steps"),
        ("chunked", whole_matrix, "T × T"),
        ("chunked", chunks_of(64), "chunks have a fixed length"),
        ("chunked", chunks_of(4), "chunks of another length"),
        ("both_ways", lambda tokens, f, b: f(tokens) + b(tokens.flip(-2)), "not flipped back"),
        ("both_ways", lambda tokens, f, b: b(tokens.flip(-1)).flip(-1) + f(tokens), "the numbers of a token"),
        ("both_ways", lambda tokens, f, b: torch.stack([f(tokens), b(tokens.flip(1)).flip(1)]).mean(0), "the mean"),
        ("both_ways", lambda tokens, f, b: f(tokens) + b(tokens), "both mixers read forwards"),
        ("both_ways", lambda tokens, f, b: None, "is there a return"),
    ],
)  # fmt: skip
def test_wrong_answers_written_otherwise_get_a_hint(exercise, wrong, hint):
    report = examine(EXERCISES[exercise], wrong)
    assert report.status == "differs"
    assert hint in report.hint, report.text


@pytest.mark.long
@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_other_forms_of_a_mistake_get_its_hint_too(exercise):
    forms = [(mistake, form) for mistake in exercise.mistakes for form in mistake.also]
    assert forms
    for mistake, form in forms:
        report = examine(exercise, form)
        assert (report.status, report.hint) == ("differs", mistake.hint), mistake.name


def through_float32(exercise):
    """The companion's answer, with all tensors in float32, and what comes out in the dtype that came in."""
    if isinstance(exercise.reference, type):

        class ConvNeXtBlock(exercise.reference):
            def forward(self, x):
                return super().forward(x).float().to(x.dtype)

        return ConvNeXtBlock
    if exercise.name == "both_ways":
        return lambda tokens, *mixers: exercise.reference(tokens, *mixers).float().to(tokens.dtype)

    def answer(*given):
        rounded = [part.float() if isinstance(part, torch.Tensor) else part for part in given]
        return exercise.reference(*rounded).to(given[0].dtype)

    return answer


@pytest.mark.parametrize("exercise", EXERCISES.values(), ids=lambda e: e.name)
def test_an_answer_that_computes_float64_in_float32_is_told_so(exercise):
    report = examine(exercise, through_float32(exercise))
    assert report.status == "differs"
    assert "float64" in report.text
    assert "only the first digits are right" in report.hint


def test_the_recurrence_that_is_compared_with_is_the_companions():
    g = torch.Generator().manual_seed(0)
    x, b, c = (torch.randn(2, 7, n, generator=g, dtype=torch.float64) for n in (3, 4, 4))
    a = torch.rand(2, 7, generator=g, dtype=torch.float64)
    theirs = ssd_recurrence(x[:, :, None], a.log()[:, :, None], b, c)[0][:, :, 0]
    torch.testing.assert_close(EXERCISES["recurrence"].reference(x, a, b, c), theirs, rtol=1e-12, atol=1e-12)


def test_the_companions_recurrence_goes_on_where_a_memory_is_cleared():
    """The chapter's selective memory has a = 0, of which the companion's own function has no logarithm."""
    x, c = torch.tensor([3.0, 1, 1, -3, 1])[None, :, None], torch.ones(1, 5, 1)
    matters = torch.tensor([1.0, 0, 0, 1, 0])
    y = EXERCISES["recurrence"].reference(x, 1 - matters[None], matters[None, :, None], c)
    assert y.flatten().tolist() == pytest.approx([3, 3, 3, -3, -3])
    with pytest.raises(ValueError, match="log_decay"):
        ssd_recurrence(x[:, :, None], (1 - matters[None]).log()[:, :, None], c, c)
