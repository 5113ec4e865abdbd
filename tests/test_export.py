"""What others run without this library: compiled without graph breaks, and exported, with any number of images.

The wrong versions, which must fail: a value that is read while torch traces, and a result that torch cannot take apart.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

import companion
from companion._arguments import check_finite
from companion.priors import MambaPrior, PixelCNN, Prior, RQTransformer, TransformerPrior
from companion.quantizers import (
    EMAVectorQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
    nearest_code,
)

pytestmark = pytest.mark.cpu_only("what is traced is the same on every device")
K, D = 6, 8
ANY = {0: torch.export.Dim.DYNAMIC}  # the batch


def vector(dim: int = D) -> VectorQuantizer:
    return VectorQuantizer(K, dim)


def ema(dim: int = D, **options: Any) -> EMAVectorQuantizer:
    return EMAVectorQuantizer(K, dim, **options)


QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "vector": vector,
    "rotation": lambda: VectorQuantizer(K, D, estimator="rotation"),
    "ema": ema,
    "ema with restarts": lambda: ema(restart_below=0.8),
    "ema on a sphere": lambda: ema(cosine=True),
    "ema frozen": lambda: ema(init="uniform").freeze(),
    "finite scalar": lambda: FiniteScalarQuantizer([2, 3, 2, 2, 3, 2, 2, 2]),
    "gumbel": lambda: GumbelQuantizer(K, D),
    "residual": lambda: ResidualQuantizer([vector() for _ in range(3)]),
    "residual ema": lambda: ResidualQuantizer([ema() for _ in range(3)]),
    "shared": lambda: ResidualQuantizer(ema(), depth=3),
    "depth dropout": lambda: ResidualQuantizer([vector() for _ in range(3)], depth_dropout=0.5),
    "projected": lambda: ProjectedQuantizer(vector(3), D),
    "projected on a sphere": lambda: ProjectedQuantizer(ema(3, cosine=True), D),
    "projected residual": lambda: ProjectedQuantizer(ResidualQuantizer([ema(3), ema(3)]), D),
    "residual of projected": lambda: ResidualQuantizer([ProjectedQuantizer(vector(3), D) for _ in range(2)]),
}
SMALL: dict[str, Any] = {"dim": 16, "num_classes": 3}
PRIORS: dict[str, Callable[[], Prior]] = {
    "transformer": lambda: TransformerPrior(5, (3, 4), layers=2, heads=2, **SMALL),
    "rq-transformer": lambda: RQTransformer(5, (2, 3, 2), layers=2, heads=2, **SMALL),
    "mamba": lambda: MambaPrior(5, (3, 4), layers=2, state=4, head_dim=8, **SMALL),
    "pixelcnn": lambda: PixelCNN(5, (3, 4), layers=2, kernel=3, **SMALL),
}
every_quantizer = pytest.mark.parametrize("kind", QUANTIZERS)
every_prior = pytest.mark.parametrize("kind", PRIORS)


def quantizer(kind: str) -> Quantizer:
    """One whose codebook was initialised, in eval mode."""
    torch.manual_seed(0)
    made = QUANTIZERS[kind]()
    made(latents())
    return made.eval()


def latents(n: int = 3) -> Tensor:
    return torch.randn(n, D, 4, 4, generator=torch.Generator().manual_seed(n))


def tokenizer() -> companion.VQVAE:
    torch.manual_seed(0)
    encoder, decoder = (made(1, D, hidden=4) for made in (companion.ResNetEncoder, companion.ResNetDecoder))
    made = companion.VQVAE(encoder, ResidualQuantizer([ema(), ema()]), decoder)
    made(torch.rand(2, 1, 16, 16))
    return made.eval()


def prior(kind: str) -> tuple[Prior, Tensor, Tensor]:
    """With codes and classes for it."""
    torch.manual_seed(0)
    made = PRIORS[kind]().eval()
    return made, torch.randint(0, 5, (3, *made.grid)), torch.tensor([0, 2, 1])


class Method(nn.Module):
    """One method of a model as a model: what torch exports is a forward."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.train(model.training)  # torch warns of a model that is exported in training mode

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.model, self.name)(*inputs)


class Step(nn.Module):
    """Codes (n, N), of which the first ``step`` are drawn, and classes (n,) → the logits of the next code, (n, K)."""

    def __init__(self, prior: Prior, step: int) -> None:
        super().__init__()
        self.prior, self.step = prior, step
        self.train(prior.training)

    def forward(self, codes: Tensor, classes: Tensor) -> Tensor:
        return self.prior.steps(classes, cache=False).logits(codes, self.step)


def compiled(model: nn.Module) -> Any:
    """Without a graph break: one is an error. Without a C++ compiler, which not every machine has."""
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def exported(model: nn.Module, *inputs: Tensor) -> Any:
    return graph_of(model, *inputs).module()


def graph_of(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(Method(model, "forward"), inputs, dynamic_shapes=((ANY,) * len(inputs),))


def assert_same(got: Any, want: Any) -> None:
    """Tensors, or results that hold some."""
    assert type(got) is type(want)
    first, second = (_pytree.tree_leaves(one) for one in (got, want))
    assert all(isinstance(one, Tensor) for one in second)
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def twice(*inputs: Tensor) -> list[Tensor]:
    """More images than it was exported with."""
    return [torch.cat([one, one]) for one in inputs]


# Quantizers -------------------------------------------------------------------------------------------------------


@every_quantizer
def test_a_quantizer_compiles_without_graph_breaks(kind: str) -> None:
    made = quantizer(kind)
    for name, x in (("forward", latents()), ("encode", latents()), ("decode", made.encode(latents()))):
        model = Method(made, name)
        assert_same(compiled(model)(x), model(x))


@every_quantizer
def test_a_quantizer_is_exported(kind: str) -> None:
    made = quantizer(kind)
    for name, x in (("forward", latents()), ("encode", latents()), ("decode", made.encode(latents()))):
        model, more = Method(made, name), twice(x)
        assert_same(exported(model, x)(*more), model(*more))


@pytest.mark.parametrize("kind", [kind for kind in QUANTIZERS if kind != "depth dropout"])
def test_a_quantizer_trains_compiled_without_graph_breaks_as_it_trains_otherwise(kind: str) -> None:
    """Gradients, moving averages and restarts of two steps. (Which images depth dropout cuts is in the data.)"""
    ends = []
    for wrap in (compiled, lambda model: model):
        made = quantizer(kind).train()
        model = wrap(made)
        for step in range(2):
            torch.manual_seed(step)  # Gumbel noise
            z = latents(4 + step).requires_grad_()
            out = model(z)
            (out.loss + out.z_q.square().mean()).backward()
        gradients = [weight.grad for weight in made.parameters() if weight.grad is not None]
        ends.append([out, z.grad, gradients, made.state_dict()])
    assert_same(*ends)


def test_restarts_happen_in_a_compiled_step_too() -> None:
    made = quantizer("ema with restarts").train()
    z = latents(5)
    compiled(made)(z)
    vectors = z.movedim(1, -1).reshape(-1, D)
    assert bool((made.codebook[:, None] == vectors).all(-1).any())  # a code is a vector of the batch


def test_a_compiled_search_is_exact_and_one_operation() -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(5000, 4) + 1000, torch.randn(300, 4) + 1000
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    torch._dynamo.reset()
    found = torch.compile(nearest_code, fullgraph=True, backend=backend)(z, codebook)
    assert torch.equal(found, torch.cdist(z.double(), codebook.double()).argmin(1))
    assert sum("companion.nearest_code" in name for name in seen) == 1
    assert not any("addmm" in name or "argmax" in name for name in seen)


def test_an_exported_graph_holds_operations_of_torch_alone() -> None:
    graphs = [
        part.graph
        for part in graph_of(Method(quantizer("residual ema"), "encode"), latents()).graph_module.modules()
        if isinstance(part, torch.fx.GraphModule)  # one in the other: ``no_grad`` has its own
    ]
    names = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    assert any("argmax" in name for name in names)
    assert not any("companion" in name for name in names)


# Models -----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_compiles_and_is_exported() -> None:
    made = tokenizer()
    x = torch.rand(3, 1, 16, 16)
    for name, one in (("forward", x), ("encode", x), ("decode", made.encode(x)), ("reconstruct", x)):
        model, more = Method(made, name), twice(one)
        assert_same(compiled(model)(one), model(one))
        assert_same(exported(model, one)(*more), model(*more))


@every_prior
def test_a_prior_compiles_and_is_exported(kind: str) -> None:
    made, *inputs = prior(kind)
    for model in (made, Method(made, "all_logits")):
        assert_same(compiled(model)(*inputs), model(*inputs))
        assert_same(exported(model, *inputs)(*twice(*inputs)), model(*twice(*inputs)))


@every_prior
def test_a_step_of_a_prior_compiles_and_is_exported(kind: str) -> None:
    made, codes, classes = prior(kind)
    inputs = codes.flatten(1), classes
    model = Step(made, step=7)
    assert_same(compiled(model)(*inputs), model(*inputs))
    assert_same(exported(model, *inputs)(*twice(*inputs)), model(*twice(*inputs)))


# ONNX -------------------------------------------------------------------------------------------------------------


def through_onnx(folder: Path, model: nn.Module, *inputs: Tensor) -> Callable[..., list[Tensor]]:
    """The model as a program of the ONNX Runtime, which knows nothing of torch."""
    pytest.importorskip("onnxscript", reason='the extra "export" is not installed')
    runtime = pytest.importorskip("onnxruntime", reason="there is nothing to run an ONNX file with")
    program = torch.onnx.export(
        Method(model, "forward"), inputs, dynamo=True, dynamic_shapes=((ANY,) * len(inputs),), verbose=False
    )
    program.save(folder / "model.onnx")
    session = runtime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(*values: Tensor) -> list[Tensor]:
        given = dict(zip(names, (value.numpy() for value in values), strict=True))
        return [torch.from_numpy(one) for one in session.run(None, given)]

    return run


@every_quantizer
def test_encode_and_decode_of_a_quantizer_run_as_onnx(kind: str, tmp_path: Path) -> None:
    made = quantizer(kind)
    for name, x in (("encode", latents()), ("decode", made.encode(latents()))):
        model, more = Method(made, name), twice(x)
        assert_same(through_onnx(tmp_path, model, x)(*more), [model(*more)])


def test_a_tokenizer_runs_as_onnx(tmp_path: Path) -> None:
    made, x = tokenizer(), torch.rand(3, 1, 16, 16)
    for name, one in (("encode", x), ("decode", made.encode(x))):
        model, more = Method(made, name), twice(one)
        assert_same(through_onnx(tmp_path, model, one)(*more), [model(*more)])


@every_prior
def test_a_step_of_a_prior_runs_as_onnx(kind: str, tmp_path: Path) -> None:
    made, codes, classes = prior(kind)
    inputs, model = (codes.flatten(1), classes), Step(made, step=7)
    assert_same(through_onnx(tmp_path, model, *inputs)(*twice(*inputs)), [model(*twice(*inputs))])


# The wrong versions -----------------------------------------------------------------------------------------------


class Reads(nn.Module):
    """Looks at the numbers while it is traced."""

    def forward(self, z: Tensor) -> Tensor:
        if not bool(z.isfinite().all()):
            raise ValueError("z: got NaN or infinity, want finite numbers")
        return 2 * z


class Checks(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        check_finite("z", z)
        return 2 * z


@dataclass(frozen=True)
class Sealed:
    z: Tensor


class Returns(nn.Module):
    def forward(self, z: Tensor) -> Sealed:
        return Sealed(2 * z)


def test_a_value_that_is_read_while_torch_traces_is_a_graph_break() -> None:
    z = latents()
    for trace in (lambda model: compiled(model)(z), lambda model: exported(model, z)(z)):
        with pytest.raises(Exception, match=r"(?i)data-dependent|control flow"):
            trace(Reads())
        assert torch.equal(trace(Checks()), 2 * z)


def test_a_result_that_torch_cannot_take_apart_is_not_exported() -> None:
    with pytest.raises(Exception, match="Sealed"):
        exported(Returns(), latents())


def test_results_are_taken_apart_and_put_together_again() -> None:
    out = quantizer("projected residual")(latents())
    twin = _pytree.tree_map(lambda value: value.clone(), out)
    assert type(twin) is type(out)
    assert type(twin.inner) is type(out.inner)
    assert_same(twin, out)
    assert copy.copy(twin).z_q.data_ptr() != out.z_q.data_ptr()
