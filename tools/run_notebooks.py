"""Execute the chapters in order at lesson size and keep their outputs: python tools/run_notebooks.py [01_autoencoder ...]

Each notebook runs in a kernel of its own, from nbs/. If a cell fails, that notebook is left as it was.
"""
import json, os, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import clean_nb, write_nb
from execnb.nbio import read_nb

NBS = Path(__file__).parent.parent/'nbs'


def run(path):
    nb = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    NotebookClient(nb, timeout=1200, kernel_name='python3', resources={'metadata': {'path': str(NBS)}}).execute()
    temporary = path.with_name(f'.{path.name}')
    nbformat.write(nb, temporary)
    cleaned = read_nb(temporary); clean_nb(cleaned, clear_all=False); write_nb(cleaned, temporary)
    os.replace(temporary, path)
    return time.perf_counter() - start


def main():
    os.environ.setdefault('LDM_SIZE', 'lesson')
    os.environ['TQDM_DISABLE'] = '1'  # bars are for people who wait; on paper they are noise
    pages = [*sorted(NBS.glob('[0-9]*_*.ipynb')), *sorted(NBS.glob('a_*.ipynb'))]  # the course, the workshop
    wanted = sys.argv[1:] or [p.stem for p in pages] + ['index']
    record = Path(__file__).parent.parent/'bench'/'chapters.json'
    for name in wanted:
        seconds = json.loads(record.read_text()) if record.exists() else {}
        seconds[name] = round(run(NBS/f'{name}.ipynb'))
        if name != 'index': record.write_text(json.dumps(dict(sorted(seconds.items())), indent=1) + '\n')
        print(f'{name}: {seconds[name]} s', flush=True)


if __name__ == '__main__': main()
