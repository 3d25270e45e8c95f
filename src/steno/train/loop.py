"""The training loop: resumable, interruptible, and done on time.

The run's progress is the fraction of its steps, or of its minutes where a time budget is given, whichever is further;
the learning rate follows the progress, so a run on a slow machine still ends its decay.
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import LlamaForCausalLM

from steno.core.errors import DataError
from steno.train import checkpoint
from steno.train import model as models
from steno.train.base import Interrupted
from steno.train.evaluate import quick_loss
from steno.train.pack import Packed
from steno.train.recipe import Recipe
from steno.train.schedule import optimizers, rate

_QUICK_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run: what, on which data, where to, and on what."""

    recipe: Recipe
    packed: Packed
    out: Path
    device: str
    minutes: float | None = None
    fingerprint: str = ""


def train(run: Run, *, resume: bool) -> LlamaForCausalLM:
    """Train to the end of the schedule; return the model. Raises Interrupted after saving, on Ctrl-C."""
    schedule = run.recipe.schedule
    model = models.build(run.recipe.shape, run.packed.vocab, run.packed.separator, schedule.seed)
    torch.nn.Module.to(model, run.device)
    on_gpu = run.device.startswith("cuda")
    optims = optimizers(model, schedule, fused=on_gpu)
    step, tokens, before_s = 0, 0, 0.0
    if resume:
        state = checkpoint.load(run.out, run.fingerprint)
        model.load_state_dict(state.model)
        for optim, saved in zip(optims, state.optimizers, strict=True):
            optim.load_state_dict(saved)
        checkpoint.set_rng_state(state.rng)
        step, tokens, before_s = state.step, state.tokens, state.elapsed_s
    plain, loss = _losses(model, run)
    weights = {bucket.name: bucket.weight for bucket in run.recipe.bucket}
    micro = schedule.micro_batch or schedule.batch
    parts = schedule.batch // micro
    start = time.monotonic() - before_s
    saved_at = time.monotonic()
    budget_s = run.minutes * 60 if run.minutes else float("inf")
    log = _Log(run.out / "log.jsonl", step)
    with _interruptible() as stop, _bar(step) as (bar, task):
        while True:
            done = max(step / schedule.steps, (time.monotonic() - start) / budget_s)
            if done >= 1:
                break
            lr = rate(schedule, step, done)
            rows = torch.from_numpy(
                run.packed.batch(weights, schedule.batch, schedule.sequence + 1, schedule.seed, step)
            ).to(run.device)
            total = torch.zeros((), device=run.device)
            for part in range(parts):
                value = loss(rows[part * micro : (part + 1) * micro]) / parts
                value.backward()
                total += value.detach()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
            for optim in optims:
                for group in optim.param_groups:
                    group["lr"] = lr
                optim.step()
                optim.zero_grad(set_to_none=True)
            step += 1
            tokens += schedule.batch * schedule.sequence
            if step % schedule.log_every == 0 or step == 1:
                now = time.monotonic() - start
                nats = float(total)
                if math.isnan(nats):
                    raise DataError(f"Training: the loss is not a number at step {step}. Lower schedule.lr and resume.")
                log.write(
                    {"step": step, "tokens": tokens, "elapsed_s": now, "lr": lr, "loss": nats, "norm": float(norm)}
                )
                bar.update(task, completed=done, step=step, loss=nats, rate=tokens / now)
            if step % schedule.eval_every == 0:
                log.write({"step": step, "tokens": tokens, "valid": _valid(plain, run)})
            if stop or time.monotonic() - saved_at > schedule.checkpoint_s:
                _save(run, model, optims, step, tokens, time.monotonic() - start)
                saved_at = time.monotonic()
            if stop:
                raise Interrupted(
                    f"Stopped at step {step}; the state is saved in {run.out}. "
                    "Run the same command with --resume to go on."
                )
    _save(run, model, optims, step, tokens, time.monotonic() - start)
    log.write({"step": step, "tokens": tokens, "elapsed_s": time.monotonic() - start, "valid": _valid(plain, run)})
    return model


def restore(run: Run) -> LlamaForCausalLM:
    """The model of the run's checkpoint."""
    model = models.build(run.recipe.shape, run.packed.vocab, run.packed.separator, run.recipe.schedule.seed)
    model.load_state_dict(checkpoint.load(run.out, run.fingerprint).model)
    torch.nn.Module.to(model, run.device)
    return model


def autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """bfloat16 arithmetic where the machine has it in hardware; float32 elsewhere."""
    if device.startswith("cuda") and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    if device == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _losses(model: LlamaForCausalLM, run: Run) -> tuple[models.Loss, models.Loss]:
    """The loss as it stands, for validation, and compiled, for training: one shape and one mode, compiled once."""

    def plain(ids: Tensor) -> Tensor:
        with autocast(run.device):
            return models.loss(model, ids)

    if not run.recipe.schedule.compile or not run.device.startswith("cuda"):
        return plain, plain
    # A machine whose compiler is broken trains at eager speed rather than not at all.
    torch._dynamo.config.suppress_errors = True
    return plain, torch.compile(plain, dynamic=False)


def _valid(loss: models.Loss, run: Run) -> dict[str, float]:
    size = run.recipe.schedule.sequence + 1
    return {name: quick_loss(loss, run.packed, name, _QUICK_ROWS, size, run.device) for name in run.packed.valid}


def _save(  # noqa: PLR0917
    run: Run, model: LlamaForCausalLM, optims: list[torch.optim.Optimizer], step: int, tokens: int, elapsed_s: float
) -> None:
    checkpoint.save(
        run.out,
        checkpoint.State(
            step=step,
            elapsed_s=elapsed_s,
            tokens=tokens,
            recipe=run.fingerprint,
            model=model.state_dict(),
            optimizers=[optim.state_dict() for optim in optims],
            rng=checkpoint.rng_state(),
        ),
    )


class _Log:
    """A JSON-lines log; on resume, what lies after the checkpoint's step is cut off."""

    def __init__(self, path: Path, step: int) -> None:
        old = path.read_text().splitlines() if step and path.is_file() else []
        kept = [line for line in old if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in kept))
        self._path = path

    def write(self, row: dict[str, object]) -> None:
        with open(self._path, "a") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _interruptible() -> Iterator[list[bool]]:
    """A list that is empty until Ctrl-C: the step at hand is finished first. A second Ctrl-C stops at once."""
    stop: list[bool] = []

    def note(_signal: int, _frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.append(True)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _bar(step: int) -> Iterator[tuple[Progress, TaskID]]:
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("step {task.fields[step]}  loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        yield bar, bar.add_task("train", total=1.0, step=step, loss=float("nan"), rate=0.0)
