"""The loss curve as a picture."""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def draw(log: Path, out: Path, title: str) -> None:
    """Training and held-out loss over tokens seen, and the learning rate, from a JSON-lines log."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    checks = [row for row in rows if "valid" in row]
    figure, (top, low) = plt.subplots(2, 1, figsize=(9, 6), height_ratios=(4, 1), sharex=True, layout="constrained")
    top.plot([r["tokens"] / 1e6 for r in steps], [r["loss"] for r in steps], lw=0.6, color="#9aa5b1", label="training")
    for name in checks[0]["valid"] if checks else ():
        top.plot(
            [r["tokens"] / 1e6 for r in checks], [r["valid"][name] for r in checks], lw=1.6, label=f"held-out {name}"
        )
    if steps:
        last = steps[len(steps) // 10 :]
        top.set_ylim(min(r["loss"] for r in steps) * 0.9, max(r["loss"] for r in last) * 1.15)
    top.set_ylabel("nats per token")
    top.set_title(title)
    top.grid(alpha=0.25)
    top.legend(frameon=False)
    low.plot([r["tokens"] / 1e6 for r in steps], [r["lr"] for r in steps], color="#334e68")
    low.set_ylabel("learning rate")
    low.set_xlabel("million tokens seen")
    low.grid(alpha=0.25)
    figure.savefig(out, dpi=110)
    plt.close(figure)
