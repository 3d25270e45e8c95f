"""A recipe of a trained part: one frozen record, read from TOML, that holds everything that decides the adapter."""

from dataclasses import dataclass
from pathlib import Path

from steno.core.errors import nearest
from steno.train.base import RecipeError
from steno.train.recipe import Bucket, Source, read, record, within

SCHEMA = 1
SHIPPED = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Text:
    """Rows of text: `prompt` tokens of a document of the training split, which the model continues to `tokens`."""

    rows: int = 1024
    tokens: int = 256
    prompt: int = 64
    held_out_rows: int = 64

    def __post_init__(self) -> None:
        within("text", "rows", self.rows, 1, 1e7)
        within("text", "prompt", self.prompt, 1, 1e6)
        within("text", "tokens", self.tokens, self.prompt + 16, 1e6)
        within("text", "held_out_rows", self.held_out_rows, 1, 1e6)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """`depth` tokens are drafted; `inner` is the width inside the part, 0 for the model's; see `base.Part.loss`."""

    depth: int = 4
    inner: int = 0
    decay: float = 0.8

    def __post_init__(self) -> None:
        within("shape", "depth", self.depth, 1, 16)
        within("shape", "inner", self.inner, 0, 65_536)
        within("shape", "decay", self.decay, 0.01, 1)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """AdamW, a linear warm-up and a linear decay to 0."""

    steps: int
    rows: int = 4
    lr: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        within("schedule", "steps", self.steps, 1, 1e9)
        within("schedule", "rows", self.rows, 1, 1e6)
        within("schedule", "lr", self.lr, 1e-8, 1)


@dataclass(frozen=True, kw_only=True)
class PartRecipe:
    """Method, model, text, shape and schedule of one adapter."""

    steno_adapter: int
    method: str
    model: str
    source: tuple[Source, ...]
    bucket: tuple[Bucket, ...]
    schedule: Schedule
    text: Text = Text()
    shape: Shape = Shape()

    @property
    def name(self) -> str:
        return self.method

    def __post_init__(self) -> None:
        if self.steno_adapter != SCHEMA:
            raise RecipeError(
                f"Recipe of {self.method}: steno_adapter must be {SCHEMA} for this steno; got {self.steno_adapter}."
            )
        if self.method not in methods():
            raise RecipeError(
                f"Recipe: {self.method!r} is no method with a part to train. {nearest(self.method, methods())}"
            )
        known = [bucket.name for bucket in self.bucket]
        for source in self.source:
            if source.bucket not in known:
                raise RecipeError(f"Recipe source {source.name!r}: bucket {source.bucket!r} is not declared.")


def methods() -> list[str]:
    """Drafters with a trained part: those that have a network here."""
    inner = {"base", "recipe", "collect", "run"}
    return sorted(f"decode.draft.{path.stem}" for path in SHIPPED.glob("[a-z]*.py") if path.stem not in inner)


def find(name: str | Path) -> Path | None:
    """The recipe file a name means where it trains a part: a file that says so, or the name of a shipped recipe."""
    path = Path(name)
    if path.is_file():
        return path if "steno_adapter" in read(path) else None
    shipped = SHIPPED / f"{name}.toml"
    return shipped if path.name == str(name) and shipped.is_file() else None


def load(path: Path) -> PartRecipe:
    """Read a recipe. Raises RecipeError with the file, the key and the remedy."""
    return record(PartRecipe, read(path), f"Recipe {path}")
