"""Outputs of one forward of the hf backend: kept on the device, brought over when asked for."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from steno.core.errors import CapsError

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class HFStep:
    """See `core.Step`. `raw` [B, W, V] on the device in the model's number form, or None where not asked for."""

    def __init__(self, raw: Tensor | None, hidden: dict[int, Tensor]) -> None:
        self._raw, self._hidden = raw, hidden
        self._logits: Floats | None = None

    @property
    def logits(self) -> Floats:
        if self._logits is None:
            self._logits = self._given().float().cpu().numpy()
        return self._logits

    @property
    def argmax(self) -> Ints:
        # torch breaks ties by the lower index on CPU and CUDA alike.
        return self._given().argmax(-1).to(torch.int32).cpu().numpy()

    @torch.inference_mode()
    def top(self, count: int) -> tuple[Ints, Floats]:
        raw = self._given()
        count = min(count, raw.shape[-1])
        best, ids = raw.topk(count, -1)
        # topk promises nothing about ties: among equals at the cut, sort all of the row.
        tied = (raw >= best[..., -1:]).sum(-1) > count
        if bool(tied.any()):
            values, order = torch.sort(raw[tied], dim=-1, descending=True, stable=True)
            best[tied], ids[tied] = values[..., :count], order[..., :count]
        flat, names = best.float().cpu().numpy(), ids.to(torch.int32).cpu().numpy()
        order = np.lexsort((names, -flat), axis=-1)
        return np.take_along_axis(names, order, -1), np.take_along_axis(flat, order, -1)

    def hidden(self, layer: int) -> Floats:
        if layer not in self._hidden:
            raise ValueError(f"hidden states of layer {layer} were not asked for: name it in Want.hidden")
        return self._hidden[layer].float().cpu().numpy()

    def picked(self, rows: Sequence[int], columns: Sequence[int]) -> Floats:
        """Logits [len(rows), V] at (row, column) pairs."""
        return self._given()[list(rows), list(columns)].float().cpu().numpy()

    def _given(self) -> Tensor:
        if self._raw is None:
            raise CapsError("the logits were not asked for: set Want.logits")
        return self._raw
