"""Made-up programs to learn from."""

import random

SOURCES = """
[[source]]
name = "made-up"
kind = "files"
bucket = "code"
path = "{path}"
globs = ["*.py"]
licence = "Apache-2.0"
[[bucket]]
name = "code"
weight = 1.0
hold_out_files = 3
hold_out_min_file = 100
"""
"""Their part of a recipe, for `format(path=...)`."""


def program(seed: int) -> str:
    """A short made-up program; different seeds share no lines worth naming."""
    rng = random.Random(seed)
    word = lambda: "".join(rng.choice("bcdfglmnprst") + rng.choice("aeiou") for _ in range(3))  # noqa: E731
    lines = []
    for _ in range(12):
        one, two = word(), word()
        lines += [f"def {one}_{two}(first_{one}, second_{two}):", f'    """Return the {word()} of {word()}."""']
        lines += [f"    {two}_total = first_{one} + second_{two} * {rng.randrange(100)}", f"    return {two}_total", ""]
    return "\n".join(lines)
