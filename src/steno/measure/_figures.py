"""Records of figures: the machine, fidelity, speed, bytes. See `base` for units."""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where figures were taken.

    cores     logical cores this process may use
    gpu       name of the accelerator in use; "" for none
    isa       instruction set of the native engine ("avx512-vnni"); "" where it is not built
    versions  of steno, torch, transformers, numpy, as far as installed
    threads   compute threads of the model
    """

    cpu: str
    cores: int
    memory_bytes: int
    gpu: str
    os: str
    python: str
    versions: dict[str, str]
    isa: str = ""
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """A candidate against the baseline, teacher-forced on the same ids, and their greedy continuations.

    texts, tokens  texts, and positions compared over all of them
    exact          KL over the whole vocabulary; else exact on the union of both top-`top` sets plus one bucket for the
                   tail, which can only be *lower* than the whole (data-processing inequality)
    kl_*           KL(baseline || candidate) per token: mean, its 95 % bootstrap interval over texts, percentiles
    top1           share of positions with the same best id
    unit           "byte" or "token": what the bits are counted per
    bits_base      cross-entropy of the text under the baseline, in bits per unit
    bits_plan      the same under the candidate
    bits_delta     bits_plan - bits_base, paired
    bits_error     standard error of bits_delta over texts; None for a single text
    divergence     per text the first position at which the greedy continuations differ; None where they do not
    continued      tokens each continuation was compared over; 0: no continuation was made
    """

    texts: int
    tokens: int
    exact: bool
    top: int
    kl_mean: float
    kl_low: float
    kl_high: float
    kl_p50: float
    kl_p90: float
    kl_p99: float
    kl_max: float
    top1: float
    unit: str
    bits_base: float
    bits_plan: float
    bits_delta: float
    bits_error: float | None
    divergence: tuple[int | None, ...] = ()
    continued: int = 0

    @property
    def identical(self) -> int:
        """Texts whose greedy continuations are the same ids."""
        return sum(at is None for at in self.divergence)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One arm of a race. Totals are sums over prompts of each prompt's median, so every rate is tokens over seconds.

    tokens        ids emitted, counted the same way for all arms
    prefill_s     until the model could emit the first token
    decode_s      the rest
    decoded       ids whose making lies in `decode_s` (one per prompt fewer where prefill already yields the first)
    ratio         tokens per second over those of the race's first arm: prefill and decode together
    ratio_low, ratio_high  its 95 % interval: bootstrap over prompts, and over repeats within a prompt
    repeats       timed passes per prompt; warm-up is not among them
    foreign       share of the machine's processor time that other processes took meanwhile; None: not known
    """

    name: str
    prompts: int
    prompt_tokens: int
    tokens: int
    decoded: int
    prefill_s: float
    decode_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    repeats: int
    foreign: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """Emitted ids over the whole time."""
        return _rate(self.tokens, self.prefill_s + self.decode_s)

    @property
    def decode_per_s(self) -> float:
        """Emitted ids over the time after prefill."""
        return _rate(self.decoded, self.decode_s)

    @property
    def prefill_per_s(self) -> float:
        """Prompt ids over the time of prefill."""
        return _rate(self.prompt_tokens, self.prefill_s)

    @property
    def ms_per_token(self) -> float:
        """Whole time over emitted ids, in milliseconds."""
        return 1e3 * (self.prefill_s + self.decode_s) / self.tokens if self.tokens else 0.0

    @property
    def noisy(self) -> bool:
        """True where others took more than a tenth of the machine: figures to be taken again."""
        return self.foreign is not None and self.foreign > 0.1


@dataclass(frozen=True, kw_only=True)
class Bytes:
    """Memory, read from live storages.

    weights         each storage once
    cache           live KV by part
    cache_tokens    *logical* tokens the cache stood for when it was read, over all rows
    bits_per_value  bits of the cache per key or value number of those tokens, metadata included; None: KV shape unknown
    process_peak    highest resident size of the whole process so far
    files           model files by part: weights, tokenizer, config, other
    """

    weights: int
    cache: dict[str, int] = field(default_factory=dict[str, int])
    cache_tokens: int = 0
    bits_per_value: float | None = None
    process_peak: int | None = None
    files: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def cache_total(self) -> int:
        return sum(self.cache.values())

    @property
    def total(self) -> int:
        """Weights and cache."""
        return self.weights + self.cache_total


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
