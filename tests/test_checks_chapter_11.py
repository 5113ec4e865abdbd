"""Chapter 11: right answers written otherwise pass, wrong ones written otherwise are refused."""

import hashlib
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch

from companion.course.chapter_11 import EXERCISES as OF_THE_CHAPTER
from companion.course.checks import examine
from companion.course.exercises import by_name
from companion.training import WarmupCosine

EXERCISES = by_name(OF_THE_CHAPTER)

# 11.1


def by_categorical(codes, new_codes, num_codes):
    counts = torch.bincount(codes.flatten(), minlength=num_codes).float() + 1
    return -torch.distributions.Categorical(probs=counts).log_prob(new_codes).sum((1, 2)) / math.log(2)


def by_loops(codes, new_codes, num_codes):
    counts = [1.0] * num_codes
    for k in codes.flatten().tolist():
        counts[k] += 1
    total = sum(counts)
    return torch.tensor([sum(-math.log2(counts[k] / total) for k in one.flatten().tolist()) for one in new_codes])


def by_one_hot(codes, new_codes, num_codes):
    counts = torch.nn.functional.one_hot(codes, num_codes).sum((0, 1, 2)) + 1.0
    occurrences = torch.nn.functional.one_hot(new_codes.flatten(1), num_codes).sum(1).float()
    return occurrences @ (counts.sum().log2() - counts.log2())


# 11.2


def with_a_random_name(content, path, write):
    _, name = tempfile.mkstemp(dir=path.parent)
    write(Path(name), hashlib.sha256(content).hexdigest().encode("ascii") + content)
    Path(name).replace(path)


def removed_after_a_failure(content, path, write):
    temporary = path.parent / ("new-" + path.name)
    whole = b"".join([bytes(hashlib.sha256(content).hexdigest(), "utf-8"), content])
    try:
        write(temporary, whole)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    os.rename(temporary, path)


def read_by_pieces(path):
    with open(path, "rb") as file:
        checksum, content = file.read(64), file.read()
    if hashlib.sha256(content).hexdigest() != checksum.decode("latin-1"):
        raise ValueError("damaged")
    return content


# 11.3


def by_minimum(step, total, warmup, floor):
    rising = (step + 1) / warmup if warmup else math.inf
    u = max(0.0, (step - warmup) / (total - warmup)) if total > warmup else 0.0
    return rising if step < warmup else floor * 1.0 + (1 - floor) * math.cos(math.pi * u / 2) ** 2


def in_float64(codes, new_codes, num_codes):
    return by_categorical(codes, new_codes, num_codes).double()


RIGHT = {
    "code_length": (by_categorical, by_loops, by_one_hot, in_float64),
    "save_checkpoint": (with_a_random_name, removed_after_a_failure),
    "load_checkpoint": (read_by_pieces,),
    "learning_rate_factor": (by_minimum,),
    "faults": (
        lambda: {"C": "a prior that ignores its class", "B": "dead codes", "A": "latents running away", "D": 1},
    ),
}


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name in RIGHT for answer in RIGHT[name]])
def test_a_right_answer_in_another_style_is_accepted(name, answer):
    report = examine(EXERCISES[name], answer)
    assert report.status == "matches", report.text


def kept_when_equal(content, path, write):
    """Right only where the file is not there yet."""
    if not path.exists():
        EXERCISES["save_checkpoint"].reference(content, path, write)


def one_name_for_all(content, path, write):
    """In the folder of the process."""
    temporary = Path(tempfile.gettempdir()) / "checkpoint-of-everybody.tmp"
    write(temporary, hashlib.sha256(content).hexdigest().encode() + content)
    os.replace(temporary, path)


WRONG = {
    "code_length": (
        lambda codes, new, k: by_categorical(codes, new, k).round(),
        lambda codes, new, k: by_categorical(codes, new, k) + 1,
        lambda codes, new, k: by_categorical(codes.unique()[:, None, None], new, k),
        lambda codes, new, k: by_categorical(codes[:, :1], new, k),
        lambda codes, new, k: by_categorical(codes, new, k + 1),
    ),
    "save_checkpoint": (kept_when_equal, one_name_for_all, lambda content, path, write: None),
    "load_checkpoint": (
        lambda path: path.read_bytes()[64:] if path.stat().st_size > 64 else b"",
        lambda path: read_by_pieces(path).strip(b"\0"),
        lambda path: None,
    ),
    "learning_rate_factor": (
        lambda step, total, warmup, floor: 1.0,
        lambda step, total, warmup, floor: by_minimum(step, total, max(warmup, 1), floor),
        lambda step, total, warmup, floor: by_minimum(step, total, warmup, 0.0) * (1 - floor) + floor,
        lambda step, total, warmup, floor: round(by_minimum(step, total, warmup, floor), 2),
    ),
    "faults": (lambda: dict.fromkeys("ABC", "dead codes"), lambda: {}, lambda: {"A": "dead codes"}, lambda: None),
}


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name in WRONG for answer in WRONG[name]])
def test_a_wrong_answer_in_another_style_is_refused(name, answer):
    assert examine(EXERCISES[name], answer).status == "differs"


def test_each_run_that_is_read_wrong_gets_a_hint():
    for run in "ABC":
        report = examine(EXERCISES["faults"], lambda run=run: EXERCISES["faults"].reference() | {run: "nothing"})
        assert f"run {run}" in report.hint


@pytest.mark.parametrize(("total", "warmup", "floor"), [(100, 10, 0.05), (7, 0, 0.0), (50, 49, 0.5)])
def test_the_schedule_that_is_compared_with_is_the_companions(total, warmup, floor):
    reference, theirs = EXERCISES["learning_rate_factor"].reference, WarmupCosine(warmup=warmup, floor=floor)
    steps = range(total)
    assert [reference(s, total, warmup, floor) for s in steps] == pytest.approx([theirs(s, total) for s in steps])


def test_the_disk_of_the_exercise_writes_half_and_stops(tmp_path):
    from companion.course.chapter_11 import PowerCutError, write, write_half

    write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    with pytest.raises(PowerCutError):
        write_half(tmp_path / "a", b"abcdefghij")
    assert (tmp_path / "a").read_bytes() == b"abcde"
