"""Arms by name, and what each needs to be loaded: `steno int8`, `llama.cpp q8_0`, `llama.cpp q8_0 flash`, ..."""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from .shapes import like

if TYPE_CHECKING:
    from .engines import Engine

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


def installed(engine: str) -> bool:
    """Whether a peer can be raced here."""
    return engine not in PACKAGES or find_spec(PACKAGES[engine]) is not None


def arms() -> list[Arm]:
    """steno in every weight form it offers, and each peer in the form of as many bits."""
    from steno.models.base import WEIGHTS

    forms = [form for form in WEIGHTS if form != "auto"]
    out = [Arm("steno", form) for form in forms]
    kinds = dict.fromkeys(kind for form in forms if (kind := like(form)))
    out += [Arm("llama.cpp", kind, option) for kind in kinds for option in ("", "flash")]
    out += [Arm("llama.cpp", "q4_0", option) for option in ("", "flash")]
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
