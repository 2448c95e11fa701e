"""Write README.md from nbs/index.ipynb, as `nbdev_readme` does where Quarto is installed: python tools/make_readme.py"""
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parent.parent


def readme():
    nb = nbformat.read(ROOT/'nbs'/'index.ipynb', as_version=4)
    nb.cells = [c for c in nb.cells if not re.match(r'#\|\s*hide', c.source)]
    for c in nb.cells: c.metadata['tags'] = ['no-code'] if re.match(r'#\|\s*echo: false', c.source) else []
    nb.metadata['language_info'] = {'name': 'python'}
    remove = {'TagRemovePreprocessor': {'enabled': True, 'remove_input_tags': ['no-code']}}
    text, _ = MarkdownExporter(config=Config(remove)).from_notebook_node(nb)
    text = re.sub(r'\]\((?!https?:|#|/)(?=[\w./-]+\.(?:ipynb|png|gif))', '](nbs/', text)  # links to chapters and pictures
    text = re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'
    return '<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n' + text


if __name__ == '__main__':
    (ROOT/'README.md').write_text(readme(), encoding='utf-8')
    print('README.md')
