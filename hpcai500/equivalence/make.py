"""Makes the proof of the code at hand: trains the package's own workload on published values.

Needs torch. Everything runs in float32; on a GPU with TF32 off, since its 10 bits of mantissa are another arithmetic.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from hpcai500.code_digest import code_sha256
from hpcai500.edition import Edition, load_edition
from hpcai500.equivalence import published
from hpcai500.equivalence.definition import load_proof_rules
from hpcai500.equivalence.proof import Parameters, Proof
from hpcai500.errors import DivergedError, UnknownNameError
from hpcai500.version import __version__
from hpcai500.workloads import open_workload
from hpcai500.workloads.workload import Workload

TASKS = {
    "resnet50": "hpcai500.equivalence.resnet50:ResNet50Task",
    "fasterrcnn": "hpcai500.equivalence.fasterrcnn:FasterRCNNTask",
}
INITIAL_SEED = 0  # of the initialisation whose root mean squares are shown; another seed gives nearly the same


class Task(Protocol):
    """What the proof trains and looks at; ``batch`` gives what the other two take."""

    def batch(self, name: str) -> Any:
        """The published batch of that name."""

    def losses(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Parts of the loss of a training step, to be added up."""

    def outputs(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Of the model in evaluation."""


def make_proof(
    workload: str,
    size: str,
    *,
    edition: Edition | None = None,
    num_steps: int | None = None,
    device: str = "cpu",
    report: Callable[[int, float], object] = lambda step, loss: None,
    settings: dict[str, object] | None = None,
) -> Proof:
    """Train and look, as docs/equivalence.rst says.

    Args:
        workload: name of the workload.
        size: name of its size.
        edition: the rules; those of this package by default.
        num_steps: fewer than the rules ask for, for tests.
        device: "cpu" or "cuda:N".
        report: told of every step's number and loss.
        settings: other values than the defaults, to see what a change does.

    Raises:
        UnknownNameError: there is no such workload or size, or it has no proof.
        DivergedError: a loss is not finite.
    """
    edition, proof_rules = edition or load_edition(), load_proof_rules()
    rules, own = edition.workload(workload), proof_rules.workload(workload)
    of_size = rules.size(size)
    if size not in own.sizes:
        raise UnknownNameError("size with a proof", size, own.sizes)
    proof_size = own.sizes[size]
    changes = settings or {}
    defaults = rules.resolve(size, "free", changes)
    flop = open_workload(workload, defaults, size=of_size, num_ranks=1, device=device).count_flop()
    used = {**defaults, **own.settings, **{key: defaults[key] for key in changes}}
    used["batch_size_per_rank"] = proof_size.batch_size
    trained = open_workload(workload, used, size=of_size, num_ranks=1, device=device)
    module, _, name = TASKS[workload].partition(":")
    task = cast("Task", getattr(importlib.import_module(module), name)(trained, proof_size, of_size))
    with torch.random.fork_rng(devices=[]), exact_products():
        torch.manual_seed(INITIAL_SEED)
        model = trained.build_model()
        initial = _rms_by_shape(model)
        set_published_weights(model)
        batches = [task.batch(f"train/{number}") for number in range(proof_rules.num_batches)]
        outputs = _look(task, model, batches[0], num_outputs=proof_rules.num_outputs)
        steps = num_steps or proof_rules.num_steps
        in_turn = (batches[step % len(batches)] for step in range(steps))
        losses = _train(task, trained, model, in_turn, learning_rate=proof_size.learning_rate, report=report)
        after = _rms_by_shape(model)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    return Proof(
        edition=edition.number,
        workload=workload,
        size=size,
        implementation=f"hpcai500 {__version__}, torch {torch.__version__} on {device}",
        code_sha256=code_sha256(),
        num_parameters=sum(map(math.prod, shapes)),
        flop_forward_per_sample=flop.forward,
        flop_training_per_sample=flop.training,
        parameters=[
            Parameters(shape=list(shape), number=shapes.count(shape), initial_rms=initial[shape], trained_rms=rms)
            for shape, rms in sorted(after.items())
        ],
        outputs=outputs,
        losses=losses,
    )


def set_published_weights(model: nn.Module) -> None:
    """Give every parameter its published values, in place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(published.weights(name, tuple(parameter.shape))))


class exact_products:  # noqa: N801
    """Context in which matrix products and convolutions of float32 are of float32."""

    def __enter__(self) -> None:
        self._before = (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self._before


def _look(task: Task, model: nn.Module, batch: Any, *, num_outputs: int) -> dict[str, list[float]]:
    """Losses of one pass in training, which only moves the statistics of the normalisation; then outputs."""
    with torch.no_grad():
        model.train()
        outputs = task.losses(model, batch)
        model.eval()
        outputs = outputs | task.outputs(model, task.batch("evaluation"))
    return {name: _spread(output.flatten().cpu(), num_outputs) for name, output in outputs.items()}


def _spread(values: Tensor, number: int) -> list[float]:
    """So many of the values at most, evenly spread: those at k * n // number."""
    number = min(number, len(values))
    return [_short(values[k * len(values) // number]) for k in range(number)]


def _train(
    task: Task,
    workload: Workload,
    model: nn.Module,
    batches: Iterable[Any],
    *,
    learning_rate: float,
    report: Callable[[int, float], object],
) -> list[float]:
    model.train()
    optimizer = workload.build_optimizer(model)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    losses = []
    for step, batch in enumerate(batches):
        loss = torch.stack(list(task.losses(model, batch).values())).sum()
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(_short(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise DivergedError(f"the loss of step {step} is {losses[-1]}, so there is nothing to compare")
        report(step, losses[-1])
    return losses


def _rms_by_shape(model: nn.Module) -> dict[tuple[int, ...], float]:
    """Root mean square of all values of all parameters of each shape."""
    squares: dict[tuple[int, ...], list[float]] = {}
    for parameter in model.parameters():
        squares.setdefault(tuple(parameter.shape), []).append(float(parameter.detach().double().square().mean()))
    return {shape: _short(math.sqrt(sum(means) / len(means))) for shape, means in squares.items()}


def _short(value: Tensor | float) -> float:
    """Seven digits, which float32 has."""
    return float(f"{float(value):.7g}")
