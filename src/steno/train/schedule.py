"""The learning rate as a function of the fraction of the run that is done, and the optimisers it drives."""

import math

import torch
from transformers import LlamaForCausalLM

from steno.train.recipe import Schedule


def rate(schedule: Schedule, step: int, done: float) -> float:
    """The learning rate of a step, when the fraction `done` of the run, in [0, 1], is behind.

    Linear warm-up over the first steps; then either a cosine to `final_lr`, or flat and a linear decay over the last
    `decay_share` (WSD). Warm-up counts steps, not time: the first step may take a minute to compile.

    >>> s = Schedule(steps=100, batch=1, sequence=8, lr=1.0, warmup_steps=10, decay="wsd", decay_share=0.5)
    >>> [rate(s, step, step / 100) for step in (4, 30, 75, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if schedule.decay == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    else:
        height = min(1.0, max(0.0, 1 - done) / schedule.decay_share)
    warm = min(1.0, (step + 1) / max(1, schedule.warmup_steps))
    return warm * (schedule.final_lr + (schedule.lr - schedule.final_lr) * height)


def optimizers(model: LlamaForCausalLM, schedule: Schedule, fused: bool) -> list[torch.optim.Optimizer]:
    """AdamW on everything, or Muon on the layers' matrices and AdamW on the rest. Norms and embeddings do not decay."""
    layers = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and ".layers." in name]
    matrices = {id(weight) for weight in layers}
    rest = [weight for weight in model.parameters() if id(weight) not in matrices]
    betas = (schedule.beta1, schedule.beta2)
    if schedule.optimizer == "muon":
        # Scaled so that an update has AdamW's size: one learning rate serves both.
        muon = torch.optim.Muon(
            layers, lr=schedule.lr, weight_decay=schedule.weight_decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        )
        return [muon, torch.optim.AdamW(rest, lr=schedule.lr, betas=betas, weight_decay=0.0, fused=fused)]
    groups = [
        {"params": layers, "weight_decay": schedule.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [torch.optim.AdamW(groups, lr=schedule.lr, betas=betas, fused=fused)]
