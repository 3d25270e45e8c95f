"""Which licences allow their text to be a training source of a model that is redistributed."""

import re
from importlib.metadata import PackageMetadata

PERMISSIVE = frozenset(
    {"mit", "mit-0", "mit-cmu", "bsd", "bsd-2-clause", "bsd-3-clause", "0bsd", "apache-2.0", "psf-2.0", "python-2.0"}
    | {"isc", "zlib", "cc0-1.0", "unlicense", "hpnd", "bsl-1.0", "llvm-exception", "ncsa", "cnri-python"}
    | {"blueoak-1.0.0"}
)
_CLASSIFIERS = {
    "mit license": "MIT",
    "bsd license": "BSD",
    "apache software license": "Apache-2.0",
    "python software foundation license": "PSF-2.0",
    "isc license (iscl)": "ISC",
    "public domain": "CC0-1.0",
    "the unlicense (unlicense)": "Unlicense",
    "zlib/libpng license": "Zlib",
}
_FREE_TEXT = (
    (re.compile(r"^(the )?mit( license)?$", re.I), "MIT"),
    (re.compile(r"^apache([ -]license)?,?[ -]*(version )?2(\.0)?( license)?$", re.I), "Apache-2.0"),
    (re.compile(r"^(new |simplified |3-clause |modified )?bsd([ -][23][ -]clause)?( license)?$", re.I), "BSD"),
    (re.compile(r"^isc( license)?$", re.I), "ISC"),
    (re.compile(r"^(psf|python software foundation)", re.I), "PSF-2.0"),
)
_COPYLEFT = re.compile(
    r"GNU (Lesser |Library |Affero )?General Public|\bA?L?GPL|Mozilla Public License|\bMPL\b|CC[ -]BY[ -](NC|SA)", re.I
)


def permissive(metadata: PackageMetadata) -> str | None:
    """The licence a distribution declares, as an SPDX-like expression, or None where it is not plainly permissive.

    The `License-Expression` field is believed first, then the classifiers, then a one-line `License` field.
    """
    expression = _field(metadata, "License-Expression")
    if expression:
        return expression if _allowed(expression) else None
    found = []
    for classifier in metadata.get_all("Classifier") or []:
        if classifier.startswith("License ::"):
            last = classifier.split("::")[-1].strip().lower()
            if last == "osi approved":
                continue
            if last not in _CLASSIFIERS:
                return None
            found.append(_CLASSIFIERS[last])
    if found:
        return " OR ".join(sorted(set(found)))
    line = _field(metadata, "License").strip().split("\n")[0].strip()
    for pattern, name in _FREE_TEXT:
        if pattern.match(line):
            return name
    return None


def copyleft_header(text: str) -> bool:
    """Whether the head of a file names a licence that is not permissive, whatever its package declares."""
    return _COPYLEFT.search(text[:3000]) is not None


def _field(metadata: PackageMetadata, name: str) -> str:
    # The protocol has no get().
    return metadata[name] if name in metadata else ""  # noqa: SIM401


def _allowed(expression: str) -> bool:
    """An SPDX expression, read loosely: every AND part needs one permissive OR part."""
    for part in re.split(r"\s+AND\s+|\s+WITH\s+", expression.replace("(", " ").replace(")", " "), flags=re.I):
        if not any(choice.strip().lower() in PERMISSIVE for choice in re.split(r"\s+OR\s+", part.strip(), flags=re.I)):
            return False
    return True
