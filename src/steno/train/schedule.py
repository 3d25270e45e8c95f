"""The learning rate as a function of the fraction of the run that is done, and the optimisers it drives."""

import math

import torch
from transformers import LlamaForCausalLM

from steno.train.recipe import Schedule


def rate(schedule: Schedule, done: float) -> float:
    """The learning rate when the fraction `done` of the run, in [0, 1], is behind.

    Linear warm-up; then either a cosine to `final_lr`, or flat and a linear decay over the last `decay_share` (WSD).

    >>> s = Schedule(steps=100, batch=1, sequence=8, lr=1.0, warmup=0.1, decay="wsd", decay_share=0.5)
    >>> [rate(s, done) for done in (0.05, 0.3, 0.75, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if done < schedule.warmup:
        return schedule.lr * max(done, 1e-3 * schedule.warmup) / schedule.warmup
    if schedule.decay == "cosine":
        along = (done - schedule.warmup) / max(1e-9, 1 - schedule.warmup)
        height = 0.5 * (1 + math.cos(math.pi * min(1.0, along)))
    else:
        height = min(1.0, max(0.0, 1 - done) / schedule.decay_share)
    return schedule.final_lr + (schedule.lr - schedule.final_lr) * height


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
