#!/usr/bin/env bash
# Gather the optional sources of src/steno/train/nib.toml into a folder:
#
#   tools/fetch_corpus.sh DIR && export STENO_CORPUS=DIR
#
# Everything here may be redistributed: permissively licensed packages, Python's documentation, public-domain texts. A
# source that cannot be had is skipped; the manifest of the corpus says which ones were there. Debian only for the texts.
set -uo pipefail
dir=${1:?usage: tools/fetch_corpus.sh DIR}
python=${PYTHON:-python3}
mkdir -p "$dir"/{wheels,packages,debian,texts}
dir=$(cd "$dir" && pwd)

for package in aiohttp astropy black bokeh celery cython dask diffusers django docutils fastapi homeassistant ipython \
    jax keras mlflow mypy numba pandas qiskit scikit-learn scipy sphinx sqlalchemy statsmodels tornado twisted xarray; do
    "$python" -m pip download -q --no-deps --only-binary=:all: -d "$dir/wheels" "$package" || echo "skipped: $package" >&2
done
for wheel in "$dir"/wheels/*.whl; do
    "$python" -m zipfile -e "$wheel" "$dir/packages"
done

if command -v apt-get >/dev/null; then
    (cd "$dir/debian" && apt-get download python3.11-doc bible-kjv bible-kjv-text dict-jargon) || echo "skipped: texts" >&2
    for deb in "$dir"/debian/*.deb; do
        dpkg -x "$deb" "$dir/debian/root"
    done
    root=$dir/debian/root/usr
    cp -r "$root/share/doc/python3.11/html/_sources" "$dir/python-docs"
    zcat <"$root/share/dictd/jargon.dict.dz" >"$dir/texts/jargon.txt"
    "$root/bin/bible" -p "$root/lib" -f -l79 gen1:1-rev22:21 >"$dir/texts/kjv.txt"
fi
du -sh "$dir"/packages "$dir"/texts
