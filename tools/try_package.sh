#!/usr/bin/env bash
# Build wheel and sdist; install the wheel in an empty environment; outside the repo and with the network cut off, draw samples and run every chapter.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
"$root/.venv/bin/python" -m build -q --outdir "$work/dist" "$root"
ls -l "$work"/dist
python=$("$root/.venv/bin/python" -c 'import sys; print(sys._base_executable)')
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q -c "$root/constraints.txt" "$work"/dist/*.whl
cd "$work"
offline=(env HF_HUB_OFFLINE=1 http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9)
if unshare -rn true 2>/dev/null; then offline+=(unshare -rn); fi   # no network interface at all, where the kernel lets us
"${offline[@]}" venv/bin/ldm_sample fashion --n 4 --out four.png --npy four.npy
venv/bin/python -c "
import numpy as np, ldm_nb, pathlib
a = np.load('four.npy'); print(ldm_nb.__file__, a.shape, a.dtype)
assert a.shape == (4, 28, 28) and a.dtype == np.uint8 and a.std() > 20
assert pathlib.Path(ldm_nb.__file__).is_relative_to(pathlib.Path.cwd()) and pathlib.Path('four.png').stat().st_size > 500"
echo 'the installed package works offline'
# A reader who has the package and one notebook file: every chapter runs top to bottom, alone in a folder, offline.
"$work/venv/bin/pip" install -q -c "$root/constraints.txt" nbclient ipykernel
mkdir alone
for notebook in "$root"/nbs/[0-9]*_*.ipynb "$root"/nbs/a_*.ipynb; do
  cp "$notebook" alone/chapter.ipynb
  (cd alone && env LDM_SIZE=smoke OMP_NUM_THREADS=2 TQDM_DISABLE=1 JUPYTER_PATH= HF_HUB_OFFLINE=1 http_proxy=http://127.0.0.1:9 https_proxy=http://127.0.0.1:9 "$work/venv/bin/jupyter-execute" --timeout=600 chapter.ipynb)
  echo "$(basename "$notebook") runs from the package alone"; rm -rf alone/*
done
