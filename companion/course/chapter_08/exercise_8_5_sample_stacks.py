"""Exercise 8.5, depth-wise sampling: stacks drawn code by code from given uniform numbers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion.course.chapter_08.exercise_8_2_spatial_inputs import spatial_inputs
from companion.course.chapter_08.exercise_8_3_depth_inputs import depth_inputs
from companion.course.checks.comparison import DIAGNOSTIC, Observed
from companion.course.checks.engine import Case, Exercise, Mistake
from companion.priors import RQTransformer
from companion.priors.sampling import draw


@torch.no_grad()
def sample_stacks(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    """Stacks drawn position by position, and within each code by code.

    Shapes:
        start: (n, dim), the <sos> of each; uniform: (n, T, R) in [0, 1), random numbers → (n, T, R) int64.
    """
    n, length, depth = uniform.shape
    stacks = torch.zeros(n, length, depth, dtype=torch.int64, device=start.device)
    for t in range(length):
        inputs = spatial_inputs(stacks[:, : t + 1], model.codes, start, model.positions[: t + 1])
        h = model.spatial(inputs)[:, -1:]  # (n, 1, dim)
        for r in range(depth):
            sequence = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)[:, 0, : r + 1]
            logits = model.to_logits(model.depthwise(sequence)[:, -1])
            stacks[:, t, r] = draw(logits.softmax(-1), uniform[:, t, r])
    return stacks


def cases() -> Sequence[Case]:
    g = torch.Generator().manual_seed(90)

    def case(label: str, n: int, t: int, r: int, k: int) -> Case:
        with torch.random.fork_rng(devices=[]):  # its first weights are drawn, only to be overwritten
            model = RQTransformer(k, (1, t, r), dim=8, layers=1, depth_layers=1, heads=2)
        model = _randomised(model, g)
        start = torch.randn(n, 8, generator=g, dtype=torch.float64)
        return Case(label, (model, start, torch.rand(n, t, r, generator=g, dtype=torch.float64)))

    made = [
        case("5 images of 4 positions, 3 codes each", 5, 4, 3, 6),
        case("7 images of 6 positions, 2 codes each", 7, 6, 2, 4),
        case("one position of 4 codes", 6, 1, 4, 5),
        case("5 positions of one code", 6, 5, 1, 5),
    ]
    model, start, uniform = made[1].arguments
    edges = _beside_the_edges(model, start, uniform, g)
    return [*made, Case("numbers close to the edge between two codes", (model, start, edges))]


def run(implementation: Any, case: Case) -> Observed:
    """The codes, how often each transformer ran, and what it left behind."""
    model, start, uniform = case.arguments
    calls = {"spatial": 0, "depth": 0}

    def counted(name: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    handles = [
        module.register_forward_hook(counted(name))
        for name, module in (("spatial", model.spatial), ("depth", model.depthwise))
    ]
    given, mode = uniform.clone(), model.training
    try:
        result = implementation(model, start.clone(), given)
    finally:
        for handle in handles:
            handle.remove()
        changed = model.training != mode
        model.train(mode)
    _, t, r = uniform.shape
    seen: Observed = {"the codes": result}
    seen["how often the spatial transformer ran"] = calls["spatial"]
    seen["how often the depth transformer ran"] = calls["depth"]
    seen["has the result a graph?"] = isinstance(result, Tensor) and result.requires_grad
    seen["uniform after the call"] = given
    seen["was the model switched between train() and eval()?"] = changed
    seen[DIAGNOSTIC + "positions and depths"] = f"{t} {r}"
    return seen


def _randomised(model: RQTransformer, g: torch.Generator) -> RQTransformer:
    """In float64, so that no rounding decides which code is drawn; its logits far from equal."""
    made = model.double().eval()
    with torch.no_grad():
        for name, weight in sorted(made.named_parameters()):
            scale = 1.0 if "to_logits" in name or "codes" in name else 0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=g))
    return made


@torch.no_grad()
def _beside_the_edges(model: RQTransformer, start: Tensor, uniform: Tensor, g: torch.Generator) -> Tensor:
    """Random numbers like ``uniform``, each 1e-9 beside the edge between two codes: float32 cannot tell the side."""
    stacks, close = torch.zeros(uniform.shape, dtype=torch.int64), uniform.clone()
    for t, r in _stack_by_stack(uniform.shape[1], uniform.shape[2]):
        h = model.spatial(spatial_inputs(stacks[:, : t + 1], model.codes, start, model.positions[: t + 1]))[:, -1:]
        inputs = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)[:, 0, : r + 1]
        p = model.to_logits(model.depthwise(inputs)[:, -1]).softmax(-1)  # (n, K)
        edge = torch.randint(p.shape[1] - 1, (len(p), 1), generator=g)
        side = torch.randint(2, (len(p),), generator=g) * 2 - 1
        close[:, t, r] = (p.cumsum(1).gather(1, edge)[:, 0] + 1e-9 * side).clamp(0, 1 - 1e-9)
        stacks[:, t, r] = draw(p, close[:, t, r])
    return close


Draw = Callable[[Tensor, Tensor], Tensor]


def _stack_by_stack(t: int, r: int) -> list[tuple[int, int]]:
    return [divmod(step, r) for step in range(t * r)]


def _depth_by_depth(t: int, r: int) -> list[tuple[int, int]]:
    return [(step % t, step // t) for step in range(t * r)]


def _variant(
    *,
    spatial: Callable[[RQTransformer, Tensor, Tensor, int], Tensor] = lambda m, stacks, start, t: m.spatial(
        spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])
    )[:, -1:],
    every_code: bool = False,
    context: Callable[[Tensor, int, int], Tensor] = lambda stacks, t, r: stacks[:, t : t + 1],
    output: Callable[[int], Any] = lambda r: -1,
    window: Callable[[int], slice] = lambda r: slice(0, r + 1),
    pick: Draw = lambda logits, u: draw(logits.softmax(-1), u),
    random_numbers: Callable[[Tensor, int, int], Tensor] = lambda u, t, r: u[:, t, r],
    keep: bool = True,
    finish: Callable[[Tensor], Any] = lambda stacks: stacks,
    order: Callable[[int, int], list[tuple[int, int]]] = _stack_by_stack,
) -> Callable[[RQTransformer, Tensor, Tensor], Any]:
    """The right answer with one of its parts replaced."""

    @torch.no_grad()
    def sample(model: RQTransformer, start: Tensor, uniform: Tensor) -> Any:
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        drawn = stacks.clone()
        for t, r in order(uniform.shape[1], uniform.shape[2]):
            if r == 0 or every_code:
                h = spatial(model, stacks, start, t)
            inputs = depth_inputs(h, context(stacks, t, r), model.codes, model.depths)[:, 0, window(r)]
            logits = model.to_logits(model.depthwise(inputs)[:, output(r)])
            drawn[:, t, r] = pick(logits, random_numbers(uniform, t, r))
            if keep:
                stacks[:, t, r] = drawn[:, t, r]
        return finish(drawn)

    return sample


def _whole_stacks_at_once(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    """One pass of the depth transformer a position, with no code of the stack known."""
    with torch.no_grad():
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        for t in range(uniform.shape[1]):
            h = model.spatial(spatial_inputs(stacks[:, : t + 1], model.codes, start, model.positions[: t + 1]))[:, -1:]
            inputs = depth_inputs(h, stacks[:, t : t + 1], model.codes, model.depths)[:, 0]
            logits = model.to_logits(model.depthwise(inputs))
            for r in range(uniform.shape[2]):
                stacks[:, t, r] = draw(logits[:, r].softmax(-1), uniform[:, t, r])
        return stacks


def _spatial_once(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    with torch.no_grad():
        stacks = torch.zeros(uniform.shape, dtype=torch.int64)
        h = model.spatial(spatial_inputs(stacks, model.codes, start, model.positions))
        for t, r in _stack_by_stack(uniform.shape[1], uniform.shape[2]):
            inputs = depth_inputs(h[:, t : t + 1], stacks[:, t : t + 1], model.codes, model.depths)[:, 0, : r + 1]
            logits = model.to_logits(model.depthwise(inputs)[:, -1])
            stacks[:, t, r] = draw(logits.softmax(-1), uniform[:, t, r])
        return stacks


def _switches_the_mode(model: RQTransformer, start: Tensor, uniform: Tensor) -> Tensor:
    stacks: Tensor = sample_stacks(model, start, uniform)
    model.train(not model.training)
    return stacks


MISTAKES = (
    Mistake(
        "spatial transformer for every code",
        _variant(every_code=True),
        "the codes are right, but the spatial transformer runs for every code. What it reads changes only when a stack "
        "is finished: once a position is enough, and that is what makes this model cheap.",
    ),
    Mistake(
        "all codes of a stack at once",
        _whole_stacks_at_once,
        "all codes of a stack are drawn from one pass, so that none knows of those before it. Run the depth "
        "transformer once a code, with the codes drawn so far.",
        also=(_variant(context=lambda stacks, t, r: 0 * stacks[:, t : t + 1]),),
    ),
    Mistake(
        "always the likeliest",
        _variant(pick=lambda logits, u: logits.argmax(-1)),
        "this takes the likeliest code and needs no random numbers; draw(probabilities, uniform[:, t, r]) is wanted.",
    ),
    Mistake(
        "logits for probabilities",
        _variant(pick=lambda logits, u: draw(logits, u)),
        "draw wants probabilities: logits.softmax(-1).",
    ),
    Mistake(
        "random numbers of one's own",
        _variant(random_numbers=lambda u, t, r: torch.rand(len(u), dtype=u.dtype)),
        "you draw random numbers of your own; they are given, in `uniform`.",
    ),
    Mistake(
        "one random number a position",
        _variant(random_numbers=lambda u, t, r: u[:, t, 0]),
        "all codes of a position get the same random number, so that they are not drawn independently: take "
        "uniform[:, t, r].",
    ),
    Mistake(
        "one random number a depth",
        _variant(random_numbers=lambda u, t, r: u[:, 0, r]),
        "all positions get the same random numbers: take uniform[:, t, r].",
    ),
    Mistake(
        "logits of the first place",
        _variant(output=lambda r: 0),
        "every code is drawn from the logits of the first place, which predict the first code. Take the newest: "
        "[:, -1].",
    ),
    Mistake(
        "last place of a whole stack",
        _variant(window=lambda r: slice(None)),
        "the depth transformer reads the whole stack, and you take its last place, which predicts the last code. Give "
        "it the first r + 1 inputs, or take place r.",
    ),
    Mistake(
        "h of the first position",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])
            )[:, :1]
        ),
        "you take h of the first position; position t is predicted from the *last* output, [:, -1:].",
    ),
    Mistake(
        "one position ahead",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(
                    torch.cat([stacks, stacks[:, :1]], 1)[:, : t + 2],
                    m.codes,
                    start,
                    torch.cat([m.positions, m.positions[:1]])[: t + 2],
                )
            )[:, -1:]
        ),
        "the spatial transformer reads one input too many: at position t there are t + 1 of them, <sos> and t stacks.",
    ),
    Mistake(
        "one position late",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : max(t, 1)], m.codes, start, m.positions[: max(t, 1)])
            )[:, -1:]
        ),
        "from the second position on the newest stack is not read: at position t there are t + 1 inputs, <sos> and t "
        "stacks.",
    ),
    Mistake(
        "nothing is written back",
        _variant(keep=False),
        "what is drawn is not put into the stacks that are read next: every code is drawn as if all before it were 0.",
    ),
    Mistake(
        "no start",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, 0 * start, m.positions[: t + 1])
            )[:, -1:]
        ),
        "the <sos> is not used: the class is in `start`.",
    ),
    Mistake(
        "depth by depth",
        _variant(order=_depth_by_depth, every_code=True),
        "you draw all positions' first codes, then all second ones. The model finishes a stack before it goes on: "
        "positions outside, depths inside.",
    ),
    Mistake(
        "a flat row",
        _variant(finish=lambda stacks: stacks.flatten(1)),
        "the codes are right, but in one row of T·R; (n, T, R) is wanted.",
    ),
    Mistake(
        "torch.multinomial",
        _variant(pick=lambda logits, u: torch.multinomial(logits.softmax(-1), 1)[:, 0]),
        "torch.multinomial draws with random numbers of its own. Here they are given: draw(probabilities, "
        "uniform[:, t, r]).",
    ),
    Mistake(
        "softmax over the batch",
        _variant(pick=lambda logits, u: draw(logits.softmax(0), u)),
        "the softmax runs over the images of the batch. The codes are on the last axis: softmax(-1).",
    ),
    Mistake(
        "always float32",
        _variant(pick=lambda logits, u: draw(logits.float().softmax(-1), u.float())),
        "codes differ only where a random number is close to the edge between two codes: float64 comes in and is "
        "rounded (.float(), .half()). Stay in the model's dtype.",
    ),
    Mistake(
        "spatial transformer once",
        _spatial_once,
        "the spatial transformer runs once, before there is a stack to read: every position is drawn as if nothing "
        "stood before it. It runs at each position, on the stacks drawn so far.",
    ),
    Mistake(
        "newest stack only",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[: t + 1])[:, -1:]
            )
        ),
        "the spatial transformer is given the newest input only, and there is no cache that remembers the others. Give "
        "it all of them, and take the last output.",
    ),
    Mistake(
        "newest code only",
        _variant(window=lambda r: slice(r, r + 1)),
        "the depth transformer is given the newest input only, and there is no cache that remembers h and the others. "
        "Give it the first r + 1, and take the last output.",
    ),
    Mistake(
        "1 − u",
        _variant(random_numbers=lambda u, t, r: 1 - u[:, t, r]),
        "1 − u is as random as u, but draws other codes: pass uniform[:, t, r] as it is.",
    ),
    Mistake(
        "a temperature",
        _variant(pick=lambda logits, u: draw((2 * logits).softmax(-1), u)),
        "the logits are scaled before the softmax; no temperature is wanted here.",
        also=(_variant(pick=lambda logits, u: draw((logits / 2).softmax(-1), u)),),
    ),
    Mistake(
        "stack of another position",
        _variant(context=lambda stacks, t, r: stacks[:, max(t - 1, 0) : max(t, 1)]),
        "the depth transformer reads the stack of another position: that of position t is stacks[:, t : t + 1].",
        also=(_variant(context=lambda stacks, t, r: stacks[:, :1]),),
    ),
    Mistake(
        "one input too few",
        _variant(window=lambda r: slice(0, max(r, 1))),
        "the depth transformer lacks its newest input: code r (from 0) is predicted from the first r + 1.",
    ),
    Mistake(
        "one position for all inputs",
        _variant(
            spatial=lambda m, stacks, start, t: m.spatial(
                spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[t : t + 1])
            )[:, -1:]
        ),
        "all inputs get the same position. t + 1 inputs have the first t + 1 positions: model.positions[: t + 1].",
        also=(
            _variant(
                spatial=lambda m, stacks, start, t: m.spatial(
                    spatial_inputs(stacks[:, : t + 1], m.codes, start, m.positions[:1])
                )[:, -1:]
            ),
        ),
    ),
    Mistake(
        "last position not drawn",
        _variant(order=lambda t, r: _stack_by_stack(t - 1, r)),
        "the last position is not drawn: range(T).",
    ),
    Mistake(
        "mode switched",
        _switches_the_mode,
        "the codes are right, but the model is left in another mode, train() or eval(), than it came in. "
        "Leave that to the caller.",
    ),
)

EXERCISE = Exercise(
    name="sample_stacks",
    chapter="08_rq_transformer",
    reference=sample_stacks,
    cases=cases,
    mistakes=MISTAKES,
    run=run,
)
