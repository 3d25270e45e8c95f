"""Arms by name, and what each needs to be loaded: `steno int8`, `llama.cpp q8_0`, `llama.cpp q8_0 flash`, ..."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .shapes import like

if TYPE_CHECKING:
    from .engines import Engine

BITS = {"fp32": 32.0, "f32": 32.0, "float32": 32.0, "bf16": 16.0, "bfloat16": 16.0, "int8": 8.0, "q8_0": 8.5}
GROUPED = {"int4": 4.5, "q4_0": 4.5}
"""Bits per weight, scales included: a scale of 16 bits for every 32 weights where weights are grouped."""

PACKAGES = {"llama.cpp": "llama_cpp", "CTranslate2": "ctranslate2", "transformers": "transformers"}


@dataclass(frozen=True)
class Arm:
    """`form` in the engine's own words; `option` a way of running it that must not change the result's meaning."""

    engine: str
    form: str
    option: str = ""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form} {self.option}".strip()

    @property
    def row(self) -> str:
        """The table's row: options of one arm share it, and the best of them counts."""
        return f"{self.engine} {self.form}"

    @property
    def bits(self) -> float:
        """Least bits per weight that have to be read."""
        known = BITS | GROUPED
        return next((bits for name, bits in known.items() if self.form.startswith(name)), 32.0)


def installed(engine: str) -> bool:
    """Whether a peer can be raced here."""
    return engine not in PACKAGES or find_spec(PACKAGES[engine]) is not None


def arms() -> list[Arm]:
    """steno in every weight form it offers, and each peer in the form of as many bits."""
    from steno.models.native import WEIGHTS

    forms = [form for form in WEIGHTS if form != "auto"]
    out = [Arm("steno", form) for form in forms]
    kinds = dict.fromkeys(kind for form in forms if (kind := like(form)))
    out += [Arm("llama.cpp", kind, option) for kind in kinds for option in ("", "flash")]
    # q4_0 is raced before the engine has int4: it is what int4 will have to beat.
    out += [] if "q4_0" in kinds else [Arm("llama.cpp", "q4_0", option) for option in ("", "flash")]
    out += [Arm("CTranslate2", form) for form in ("int8", "float32")]
    out += [Arm("transformers", "fp32")]
    return [arm for arm in out if installed(arm.engine)]


def load(arm: Arm, shape: str, threads: int) -> "Engine":
    """The arm's engine with the model of a shape."""
    from . import models

    if arm.engine == "steno":
        from .engines import Steno

        return Steno(models.hf_folder(shape), arm.form, threads)
    if arm.engine == "llama.cpp":
        from .engine_llama import Llama

        return Llama(
            models.gguf_file(shape, arm.form), threads, flash="flash" in arm.option, repack="plain" not in arm.option
        )
    if arm.engine == "CTranslate2":
        from .engine_ct2 import Translator

        return Translator(models.ct2_folder(shape), arm.form, threads)
    from .engine_transformers import Transformers

    return Transformers(models.hf_folder(shape), threads)


def prepare(arm: Arm) -> None:
    """Import what the arm needs: interpreter and libraries are no part of a model's memory."""
    import_module(PACKAGES.get(arm.engine, "steno.models.native"))


def make(arm: Arm, shape: str) -> None:
    """Write the arm's model, before anything is timed."""
    from . import models

    if arm.engine == "llama.cpp":
        models.gguf_file(shape, arm.form)
    elif arm.engine == "CTranslate2":
        models.ct2_folder(shape)
    else:
        models.hf_folder(shape)
