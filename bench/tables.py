"Tables of bench/RECIPE.md that commands write: each between two marks, <!-- name --> and <!-- end of name -->."
from pathlib import Path

RECIPE = Path(__file__).parent/'RECIPE.md'


def marked(name, table): # the text between and with the marks
    return f'<!-- {name} -->\n{table}\n<!-- end of {name} -->'


def put_table(name, table):
    text = RECIPE.read_text(encoding='utf-8')
    before, rest = text.split(f'<!-- {name} -->')
    after = rest.split(f'<!-- end of {name} -->')[1]
    RECIPE.write_text(before + marked(name, table) + after, encoding='utf-8')
