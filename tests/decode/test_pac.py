"""Partial programs: by hand, against all choices of holes, and through the search."""

import ast
from itertools import combinations

import numpy as np
import pytest
from rig import Strict

from steno.core import Plan
from steno.decode import Request, generate
from steno.decode._holes import Part, choose, covers, open_spans, parts, program
from steno.decode.search.pac import Pac


def split(text):
    """A text in pieces of a word, a mark or white space, and where they stand."""
    import re

    pieces = re.findall(r"\w+|\s+|[^\w\s]", text)
    return pieces, [0, *np.cumsum([len(p) for p in pieces]).tolist()]


def code(text, prompt=""):
    given = len(split(prompt)[0]) if prompt else 0
    return program(prompt + text, split(prompt + text)[1], given)


def shown(text, spans):
    """The text with ?? in its holes."""
    pieces, out, place = split(text)[0], "", 0
    for start, end in spans:
        out += "".join(pieces[place:start]) + "??"
        place = end
    return out + "".join(pieces[place:])


def logs(text, **costs):
    """Log-probabilities: 0, or what a word costs."""
    return [-costs.get(piece, 0.0) for piece in split(text)[0]]


def test_the_smallest_hole_by_hand():
    text = "total = price * count + tax"
    one = code(text)
    assert open_spans(one, logs(text), 0.0, 3) == ()
    assert shown(text, open_spans(one, logs(text, tax=3.0), 1.0, 3)) == "total = price * count + ??"
    two = logs(text, tax=3.0, price=2.0)
    assert shown(text, open_spans(one, two, 0.0, 3)) == "total = ?? * count + ??"
    assert shown(text, open_spans(one, two, 2.0, 3)) == "total = price * count + ??"
    assert shown(text, open_spans(one, two, 0.0, 1)) == "total = ??"
    # An operator is nobody's but the expression's: all of that has to go.
    assert (
        shown(text, open_spans(one, [-3.0 if p == "*" else 0.0 for p in split(text)[0]], 0.0, 3)) == "total = ?? + tax"
    )
    # The sign of assignment goes with its statement.
    assert shown(text, open_spans(one, [-3.0 if p == "=" else 0.0 for p in split(text)[0]], 0.0, 3)) == "??"
    assert open_spans(one, two, 0.0, 0) == ((0, len(two)),), "without holes there is only nothing"


def test_what_fills_the_holes():
    text = "total = price * count + tax"
    one, spans = code(text), open_spans(code(text), logs(text, tax=3.0), 0.0, 3)
    assert covers(one, spans, "total = price * count + (1 if x else f(y))") and covers(one, spans, text)
    assert covers(one, spans, "total=price*count+0")
    assert not covers(one, spans, "total = price + count + tax")
    assert not covers(one, spans, "total = price * count")
    assert not covers(one, spans, "total = price * count + tax; x = 1") and not covers(one, spans, "total = (")


def test_the_prompt_is_never_open_and_what_does_not_parse_is():
    prompt, text = "def f(x):\n    return ", "x + y\n\ndef g(:\n"
    both = code(text, prompt)
    spans = open_spans(both, logs(text, y=1.0), 0.0, 3)
    # The second line break ends behind what parses.
    assert shown(text, spans) == "x + ????"
    assert open_spans(code("= = 2", "x "), logs("= = 2"), 9.0, 3) == ((0, 5),)
    assert open_spans(code("+ 1", "x "), logs("+ 1"), 0.0, 3) == ()
    # The sum is begun in the prompt, so it cannot be left out; the 1 can.
    begun = code("+ 1", "x ")
    assert open_spans(begun, [0.0, 0.0, -2.0], 0.0, 3) == ((2, 3),)
    assert open_spans(begun, [-2.0, 0.0, 0.0], 0.0, 3) == ((0, 3),), "nothing smaller takes the + away"


def test_names_beyond_ascii_stand_where_they_stand():
    text = "é = ü + tax"
    assert shown(text, open_spans(code(text), logs(text, tax=1.0), 0.0, 1)) == "é = ü + ??"


def flat(found):
    return [span for part in found for span in ((part.start, part.end), *flat(part.parts))]


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_the_choice_against_all_choices(most):
    rng = np.random.default_rng(most)
    for text in ("f(a, b[0], c + d) == g(h)\nx = [1, y, z.w]", "a", "if a:\n    b = c\n    return d\n"):
        found = parts(code(text))
        spans = sorted(set(flat(found)))
        count = len(split(text)[0])
        costs = rng.exponential(1.0, count).tolist()
        for limit in (0.0, 0.5, 2.0, sum(costs)):
            best = None
            for number in range(most + 1):
                for some in combinations(spans, number):
                    gone = [i for start, end in some for i in range(start, end)]
                    left = sum(costs) - sum(costs[i] for i in gone)
                    if len(set(gone)) == len(gone) and left <= limit + 1e-9:
                        best = min(best, len(gone)) if best is not None else len(gone)
            chosen = choose(found, costs, most, limit)
            assert (chosen is None) == (best is None)
            if chosen is not None:
                assert sum(end - start for start, end in chosen) == best and len(chosen) <= most
                assert set(chosen) <= set(spans)


def test_parts_are_those_of_the_tree():
    text = "x = f(y)"
    assert parts(code(text)) == [
        Part(0, 8, [Part(0, 1), Part(4, 8, [Part(4, 5), Part(6, 7)])]),
    ]
    assert len(flat(parts(code(text)))) == sum(isinstance(n, ast.expr | ast.stmt) for n in ast.walk(ast.parse(text)))


WORDS = ["<s>", "x = ", "y", " + ", "z", "\n", "<end>"]


def text_of(ids):
    return "".join(WORDS[i] for i in ids)


def test_the_search_opens_what_the_model_doubted():
    says = {1: 2, 2: 3, 3: 4, 4: 5, 5: 6}

    def script(past):
        law = np.full(7, 1e-9)
        if past[-1] == 3:
            law[1:3] = 0.3
        law[says.get(past[-1], 6)] = 0.4
        return np.log(law)

    model = Strict(vocab=7, script=script, end=6)
    asked = Request(number=0, prompt=(0, 1), max_tokens=9)
    for tau, holes in ((0.1, ((2, 3),)), (5.0, ())):
        (done,) = generate(model, [asked], Plan((Pac(tau=tau),)), text=text_of)
        assert done.tokens == (2, 3, 4, 5, 6) and done.found[0].holes == holes
    (blind,) = generate(model, [asked], Plan((Pac(),)))
    assert blind.found[0].holes == ((0, 5),)
