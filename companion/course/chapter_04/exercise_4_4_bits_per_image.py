"""Exercise 4.4, bits per image: nominal, by entropy, and by position."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.checks.comparison import Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.metrics import bits_per_image, perplexity


def cases() -> Sequence[Case]:
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


def run(implementation: Any, case: Case) -> Observed:
    """Each number under its name."""
    indices, num_codes = case.arguments
    given = indices.clone()
    result = implementation(given, num_codes)
    if not isinstance(result, dict):
        return {"the type of the result": type(result).__name__}
    return {"the type of the result": "dict", "the names": sorted(result)} | {
        **{f'"{n}"': v for n, v in result.items()},
        "argument 1 after the call": given,
    }


def _entropy(counts: Tensor) -> float:
    return math.log2(perplexity(counts))


def _variant(
    *,
    nominal: Callable[[int, int], float] = lambda t, k: t * math.log2(k),
    entropy: Callable[[Tensor, int], float] = lambda i, k: (
        i[0].numel() * _entropy(torch.bincount(i.flatten(), minlength=k))
    ),
    per_position: Callable[[Tensor, int], float] = lambda i, k: sum(_entropy_by_position(i, k)),
) -> Callable[[Tensor, int], dict[str, float]]:
    """The right answer with some of its numbers replaced."""

    def bits(indices: Tensor, num_codes: int) -> dict[str, float]:
        return {
            "nominal": nominal(indices[0].numel(), num_codes),
            "entropy": entropy(indices, num_codes),
            "per_position": per_position(indices, num_codes),
        }

    return bits


def _entropy_by_position(indices: Tensor, num_codes: int) -> list[float]:
    columns = indices.flatten(1).unbind(1)
    return [_entropy(torch.bincount(column, minlength=num_codes)) for column in columns]


def _entropy_by_image(indices: Tensor, num_codes: int) -> list[float]:
    return [_entropy(torch.bincount(image.flatten(), minlength=num_codes)) for image in indices]


MISTAKES = (
    Mistake(
        "nats",
        _variant(
            nominal=lambda t, k: t * math.log(k),
            entropy=lambda i, k: i[0].numel() * math.log(perplexity(torch.bincount(i.flatten()))),
            per_position=lambda i, k: sum(_entropy_by_position(i, k)) * math.log(2),
        ),
        "these are nats: take logarithms to base 2 for bits.",
    ),
    Mistake(
        "nominal of one code",
        _variant(nominal=lambda t, k: math.log2(k)),
        '"nominal" is what one code costs. A table has T of them: T·log₂K.',
    ),
    Mistake(
        "log of T times K",
        _variant(nominal=lambda t, k: math.log2(t * k)),
        '"nominal" is T·log₂K; log₂(T·K) would be one choice among T·K things.',
    ),
    Mistake(
        "nominal rounded up",
        _variant(nominal=lambda t, k: float(t * math.ceil(math.log2(k)))),
        "log₂K is rounded up to whole bits a code. Codes can be packed together, so nominal bits are not rounded.",
    ),
    Mistake(
        "nominal of all images",
        lambda i, k: _variant()(i, k) | {"nominal": i.numel() * math.log2(k)},
        "this is what all images cost together: count the positions of one image.",
    ),
    Mistake(
        "K from the largest index",
        lambda i, k: _variant()(i, int(i.max()) + 1),
        '"nominal" takes K from the largest index that occurs. Codes that nothing chose are in the codebook, too: '
        "num_codes.",
    ),
    Mistake(
        "K from the codes that occur",
        lambda i, k: _variant()(i, k) | {"nominal": i[0].numel() * math.log2(len(i.unique()))},
        '"nominal" counts only the codes that occur. Those that nothing chose are in the codebook, too: num_codes.',
    ),
    Mistake(
        "entropy of one position",
        _variant(entropy=lambda i, k: _entropy(torch.bincount(i.flatten(), minlength=k))),
        '"entropy" is that of one position. An image has T of them: T·H.',
    ),
    Mistake(
        "entropy of all images",
        _variant(entropy=lambda i, k: i.numel() * _entropy(torch.bincount(i.flatten(), minlength=k))),
        '"entropy" is what all images cost together: it is T·H, with T the positions of one image.',
    ),
    Mistake(
        "entropy of each image",
        _variant(entropy=lambda i, k: i[0].numel() * sum(_entropy_by_image(i, k)) / len(i)),
        "the shares of each image are taken apart and then averaged. Whoever writes the codes down does not know an "
        "image's own "
        "shares: take those over all images together.",
    ),
    Mistake(
        "per position: the mean",
        _variant(per_position=lambda i, k: sum(_entropy_by_position(i, k)) / i[0].numel()),
        '"per_position" is the mean over the positions; an image needs all of them: the sum.',
    ),
    Mistake(
        "per position: perplexities",
        _variant(per_position=lambda i, k: sum(2**h for h in _entropy_by_position(i, k))),
        '"per_position" adds perplexities. Bits add up, numbers of choices multiply: take the logarithm of each first.',
    ),
    Mistake(
        "per image in place of per position",
        _variant(per_position=lambda i, k: sum(_entropy_by_image(i, k))),
        '"per_position" groups by image: with indices.flatten(1) of shape (N, T), a position is a column, table[:, t].',
    ),
    Mistake(
        "rows instead of positions",
        _variant(per_position=lambda i, k: sum(_entropy(torch.bincount(i[:, r].flatten())) for r in range(i.shape[1]))),
        '"per_position" takes a whole row of the grid for a position: flatten h and w into T first.',
        also=(
            _variant(
                per_position=lambda i, k: (
                    i.shape[2] * sum(_entropy(torch.bincount(i[:, r].flatten())) for r in range(i.shape[1]))
                )
            ),
        ),
    ),
    Mistake(
        "used codes only",
        _variant(
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
        _variant(nominal=lambda t, k: 49 * math.log2(k)),
        '"nominal" has T = 49, as in the tables above. T is h·w, the number of positions of these indices.',
    ),
    Mistake(
        "square grid",
        lambda i, k: _variant(nominal=lambda t, k: i.shape[1] ** 2 * math.log2(k))(i, k),
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
    Mistake(
        "per position times T",
        _variant(per_position=lambda i, k: i[0].numel() * sum(_entropy_by_position(i, k))),
        '"per_position" is T times too large: the sum runs over the T positions already.',
    ),
    Mistake(
        "perplexities for entropies",
        _variant(
            entropy=lambda i, k: i[0].numel() * perplexity(torch.bincount(i.flatten())),
            per_position=lambda i, k: sum(2**h for h in _entropy_by_position(i, k)),
        ),
        "these are perplexities, numbers of codes. Bits are their logarithms: math.log2(perplexity(…)).",
        also=(_variant(entropy=lambda i, k: i[0].numel() * perplexity(torch.bincount(i.flatten()))),),
    ),
    Mistake(
        "per position: log of the mean perplexity",
        _variant(
            per_position=lambda i, k: (t := i[0].numel()) * math.log2(sum(2**h for h in _entropy_by_position(i, k)) / t)
        ),
        '"per_position" averages perplexities before the logarithm. Take the logarithm at each position, then add up.',
    ),
    Mistake("K written in", _variant(nominal=lambda t, k: t * 6.0), '"nominal" has K = 64 written in. K is num_codes.'),
    Mistake(
        "images and positions exchanged",
        lambda i, k: bits_per_image(i.flatten(1).T[:, :, None], k),
        "images and positions are exchanged: in indices (N, h, w) the first axis counts images, and T is h·w.",
    ),
    Mistake(
        "positions cut across images",
        _variant(per_position=lambda i, k: sum(_entropy_by_position(i.reshape(i[0].numel(), len(i)).T[:, :, None], k))),
        '"per_position" cuts across images: reshape(T, N) does not transpose. A position is a column of '
        "indices.flatten(1).",
    ),
    Mistake(
        "a position left out",
        _variant(per_position=lambda i, k: sum(_entropy_by_position(i, k)[:-1])),
        '"per_position" leaves a position out (the first or the last): all T count.',
        also=(_variant(per_position=lambda i, k: sum(_entropy_by_position(i, k)[1:])),),
    ),
    Mistake(
        "names exchanged",
        lambda i, k: (
            (bits := bits_per_image(i, k)) | {"entropy": bits["per_position"], "per_position": bits["entropy"]}
        ),
        'the numbers of "entropy" and "per_position" are exchanged.',
    ),
    Mistake(
        "per pixel",
        lambda i, k: {name: bits / 784 for name, bits in bits_per_image(i, k).items()},
        "these are bits per pixel. Bits per image are wanted.",
        also=(lambda i, k: {name: bits / i[0].numel() for name, bits in bits_per_image(i, k).items()},),
    ),
    Mistake(
        "one more for each code",
        _variant(
            entropy=lambda i, k: i[0].numel() * _entropy(torch.bincount(i.flatten(), minlength=k) + 1),
            per_position=lambda i, k: sum(
                _entropy(torch.bincount(column, minlength=k) + 1) for column in i.flatten(1).unbind(1)
            ),
        ),
        "codes that were never chosen are counted as if they were (+ 1). The shares are those of these images.",
    ),
    Mistake(
        "log of T times the perplexity",
        _variant(entropy=lambda i, k: math.log2(i[0].numel() * perplexity(torch.bincount(i.flatten())))),
        '"entropy" is T·H: T stands outside the logarithm.',
    ),
    Mistake(
        "shares of the first image",
        _variant(entropy=lambda i, k: i[0].numel() * _entropy(torch.bincount(i[0].flatten()))),
        '"entropy" has the shares of the first image only. They are those of all images together.',
    ),
    Mistake(
        "rounded to whole bits",
        lambda i, k: {name: int(bits) for name, bits in bits_per_image(i, k).items()},
        "the numbers are rounded. Bits per image are means and need not be whole.",
    ),
    Mistake(
        "other names",
        lambda i, k: {name.replace("_", " "): bits for name, bits in bits_per_image(i, k).items()},
        'the three names are "nominal", "entropy" and "per_position", spelt so.',
        also=(lambda i, k: dict(list(bits_per_image(i, k).items())[:2]),),
    ),
)

EXERCISE = Exercise(
    name="bits_per_image",
    chapter="04_vq_vae",
    reference=bits_per_image,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)
