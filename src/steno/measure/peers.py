"""Other engines as arms of a race, on the same ids and the same number of threads."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from steno.core.errors import MissingExtra, ModelError

from .base import Peer
from .speed import Arm, Race, Timing


def transformers_generate(
    folder: Path, *, threads: int = 0, dtype: str = "auto", device: str = "cpu", ignore_eos: bool = False
) -> Arm:
    """Stock `AutoModelForCausalLM.generate`: greedy, with its KV cache.

    The time to the first token is its prefill. `dtype` "auto" is what transformers takes by itself. `threads` 0 leaves
    torch's own choice; torch has one thread count per process, so it holds for every torch arm of the race.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList
    except ModuleNotFoundError as error:
        raise MissingExtra("the transformers peer", error.name or "transformers", "hf") from None
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=dtype, local_files_only=True).eval()
        torch.nn.Module.to(model, device)
    except (OSError, ValueError) as error:
        raise ModelError(f"transformers cannot load {folder}: {str(error).splitlines()[0]}") from None
    stock = model.generation_config
    ends = [] if ignore_eos or stock.eos_token_id is None else stock.eos_token_id
    # A fresh settings record: the model's own may sample, penalise or cut, and the arm is to be plain greedy.
    model.generation_config = GenerationConfig(bos_token_id=stock.bos_token_id)

    class FirstToken(StoppingCriteria):
        """Never stops; notes when the first token was there."""

        at: float | None = None

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **rest: object) -> torch.Tensor:
            if self.at is None:
                self.at = time.perf_counter()
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def run(prompt: Sequence[int], max_tokens: int) -> Timing:
        if threads and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        settings = GenerationConfig(
            do_sample=False,
            use_cache=True,
            max_new_tokens=max_tokens,
            eos_token_id=ends or None,
            pad_token_id=0,
        )
        ids = torch.tensor([list(prompt)], device=device)
        first = FirstToken()
        with torch.inference_mode():
            start = time.perf_counter()
            # The stubs of transformers do not know their own mixin.
            out = model.generate(  # type: ignore[misc]
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList([first]),
            )
            # Reading the ids waits for the device, as anybody who wants them has to.
            tokens = tuple(out[0, ids.shape[1] :].tolist())
            end = time.perf_counter()
        middle = first.at if first.at is not None else end
        return Timing(tokens=tokens, prefill_s=middle - start, decode_s=end - middle, decoded=max(0, len(tokens) - 1))

    return Arm("transformers", run)


def peer_of(race: Race, arm: int, *, base: int = 0, package: str = "transformers", notes: str = "") -> Peer:
    """The peer's record from a race: its speed, and on how many prompts its ids are those of arm `base`."""
    count = len(race.passes[arm])
    same = sum(race.tokens(arm, p) == race.tokens(base, p) for p in range(count))
    return Peer(
        name=race.speeds[arm].name,
        version=version(package),
        speed=race.speeds[arm],
        identical=same,
        compared=count,
        notes=notes,
    )
