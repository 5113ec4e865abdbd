"""Precision, device and processes of ``fit``, and that the caller's model and settings come out as they went in."""

import copy
import os
import pickle

import accelerate
import pytest
import torch
from torch import Tensor, nn
from training_runs import noisy, train
from workers.fit_worker import Digits, Noisy, Output, bits, objective

from companion.course.session import default_device
from companion.training.accelerator import own_accelerator

pytestmark = pytest.mark.cpu_only("compares what the CPU gives, before and after")


def test_two_precisions_in_one_process_and_the_model_is_unpatched() -> None:
    model = noisy()
    keys, attributes = list(model.state_dict()), set(vars(model))
    seen: list[torch.dtype] = []

    def watched(model: nn.Module, x: Tensor, y: Tensor) -> Output:
        out = objective(model, x, y)
        seen.append(out.reconstruction.dtype)
        return out

    for precision in ("bf16", "no", "bf16"):
        train(model, epochs=1, precision=precision, objective=watched, validation=Digits(11, 2))
        assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
        seen.clear()
        assert type(model) is Noisy
        assert set(vars(model)) == attributes
        assert list(model.state_dict()) == keys
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        hooks = [n for m in model.modules() for n, v in vars(m).items() if "hooks" in n and v]
        assert not hooks
        assert bits(pickle.loads(pickle.dumps(model))) == bits(copy.deepcopy(model)) == bits(model)


def test_prepare_on_the_model_itself_would_patch_it() -> None:
    model = noisy()
    with own_accelerator("bf16", "cpu") as accelerator:
        wrong = accelerator.prepare(model)
    assert wrong is model
    assert {"forward", "_original_forward"} <= set(vars(model))
    assert model(torch.rand(2, 16)).reconstruction.dtype == torch.bfloat16  # long after training


def test_an_accelerator_of_the_caller_goes_on_working() -> None:
    with own_accelerator("no", "cpu"):  # cleans up what this test does to the process
        callers = accelerate.Accelerator(cpu=True, mixed_precision="no")
        with pytest.raises(ValueError, match="already been initialized"):
            accelerate.Accelerator(cpu=True, mixed_precision="bf16")  # which is why fit puts it aside
        train(noisy(), epochs=1, precision="bf16")
        assert (callers.device.type, callers.mixed_precision) == ("cpu", "no")


def test_settings_of_accelerate_launch_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = noisy(), noisy()
    train(model)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    train(other)
    assert bits(other) == bits(model)


def test_fit_chooses_the_device_that_begin_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a Mac torch offers "mps", where data and models of a chapter are not."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    with own_accelerator("no", None) as accelerator:
        assert accelerator.device.type == default_device().type


def test_fit_without_a_device_leaves_the_model_where_a_chapter_has_its_data() -> None:
    model = noisy()
    train(model, epochs=1, device=None)
    assert next(model.parameters()).device.type == default_device().type


def test_processes_that_accelerate_cannot_join_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)  # made by hand, without a launcher
    with pytest.raises(ValueError, match=r"2 processes, but Accelerate uses cpu and joins 1; start .* torchrun"):
        train(noisy())


@pytest.mark.parametrize("name", ["cpu:0", "cuda:1", "mps"])
def test_the_named_device_is_used_with_its_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.get_device_module(torch.device(name).type), "is_available", lambda: True)
    with own_accelerator("no", name) as accelerator:
        assert accelerator.device == torch.device(name)


def test_the_environment_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    for callers in (None, "meta"):
        if callers is not None:
            monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", callers)
        before = dict(os.environ)
        with own_accelerator("no", "cpu") as accelerator:
            assert accelerator.device == torch.device("cpu")
            assert dict(os.environ) == before  # also for what the caller starts while training runs
        assert dict(os.environ) == before
        with pytest.raises(ValueError, match="device: got xpu"), own_accelerator("no", "xpu"):
            pass
        assert dict(os.environ) == before


def test_settings_of_the_caller_survive_an_error_in_training() -> None:
    def failing(*_: object) -> Output:
        raise RuntimeError("in the objective")

    with own_accelerator("bf16", "cpu"):  # cleans up what this test does to the process
        callers = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
        with pytest.raises(RuntimeError, match="in the objective"):
            train(noisy(), epochs=1, objective=failing)
        assert (callers.mixed_precision, callers.gradient_accumulation_steps) == ("bf16", 4)
