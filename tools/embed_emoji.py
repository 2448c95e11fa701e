"""Make ldm_nb/datasets/emoji.npz: Noto Emoji at 32 px on white, with what each picture shows.

    npm pack emoji-datasource-google@16.0.0 && tar xzf emoji-datasource-google-16.0.0.tgz    # makes package/
    python tools/embed_emoji.py package            # write it
    python tools/embed_emoji.py package --check    # exit 1 unless the committed file is what this makes, byte for byte

Pictures and names are those of the package; skin tone, gender, role and design follow from the code points and names.
The bytes depend on the package, on Pillow's resizing and on zlib alone.
"""
import io, json, re, sys
from pathlib import Path

import numpy as np

from ldm_nb.folder import fit_image, open_image

TARGET = Path(__file__).parent.parent/'ldm_nb'/'datasets'/'emoji.npz'
SIDE = 32
TONES = {'1F3FB': 'light', '1F3FC': 'medium-light', '1F3FD': 'medium', '1F3FE': 'medium-dark', '1F3FF': 'dark'}
# what says that a woman, a man, or a person is drawn: also girl, boy, child, and the old
WOMAN = {'1F469', '2640', '1F467', '1F475', '1F478', '1F936', '1F930', '1F483'}
MAN = {'1F468', '2642', '1F466', '1F474', '1F934', '1F385', '1FAC3', '1F57A'}
PERSON = {'1F9D1', '1F9D2', '1F9D3', '1FAC5', '1FAC4'}
# one design in its three genders, where the code points do not say so
SAME = {'1F469': '1F9D1', '1F468': '1F9D1', '1F467': '1F9D2', '1F466': '1F9D2', '1F475': '1F9D3', '1F474': '1F9D3',
        '1F478': '1FAC5', '1F934': '1FAC5', '1F930': '1FAC4', '1FAC3': '1FAC4', '1F57A': '1F483',
        '1F936': '1F9D1 1F384', '1F385': '1F9D1 1F384', '1F491': '1F9D1 2764 1F9D1', '1F48F': '1F9D1 2764 1F48B 1F9D1',
        '1F46A': '1F9D1 1F9D1 1F9D2', '1F46B': '1F9D1 1F91D 1F9D1', '1F46C': '1F9D1 1F91D 1F9D1',
        '1F46D': '1F9D1 1F91D 1F9D1'}
PAIRS = {'1F46B': 'woman, man', '1F46C': 'man', '1F46D': 'woman'} # two people in one code point
NEUTRAL = {'princess': 'with crown', 'mother christmas': 'santa claus', 'mermaid': 'merperson'} # roles named by a gender
ROLES = 'person-role', 'person-activity', 'person-sport', 'person-gesture', 'person-fantasy', 'person-resting'


def codes(entry): return [c for c in entry['unified'].split('-') if c not in ('FE0F', '200D')]


def once(words): return ', '.join(dict.fromkeys(words))


def design(entry):
    "The code points without genders, and without the arrow of those who face right."
    first, *others = codes(entry)
    kept = [first, *(c for c in others if c not in ('2640', '2642', '27A1'))]
    return ' '.join(SAME.get(c, c) for c in kept)


def gender(entry):
    names = [(c in WOMAN and 'woman') or (c in MAN and 'man') or (c in PERSON and 'person') for c in codes(entry)]
    return PAIRS.get(entry['unified']) or once(filter(None, names))


def without_gender(name):
    return NEUTRAL.get(name) or ' '.join(re.sub(r'\b((wo)?m[ae]n|person)\b', '', name).split())


def described(entries):
    "A row for every picture: what it shows, and where it lies. The order is that of a keyboard."
    entries = sorted(entries, key=lambda e: e['sort_order'])
    genders, women = {}, {} # of each design
    for e in entries:
        genders.setdefault(design(e), set()).update(gender(e).split(', '))
        if gender(e) == 'woman': women.setdefault(design(e), e['name'].lower())
    for e in entries:
        d, name, people = design(e), e['name'].lower(), e['subcategory']
        # a design with women and men shows a person where it says neither
        who = gender(e) or 'person'*({'woman', 'man'} <= genders[d])
        role = without_gender(women.get(d, name)) if people in ROLES else ''
        row = dict(name=name, short_names=[s.replace('_', ' ') for s in e['short_names']], category=e['category'],
                   subcategory=people, gender=who, role=role, design=d)
        for tones, picture in {'': e, **e.get('skin_variations', {})}.items():
            skin = once(TONES[t] for t in tones.split('-') if t)
            yield dict(id=picture['unified'], **row, skin=skin), float(e['added_in'])


def packed(folder):
    "The contents of emoji.npz."
    found = {} # {the bytes of a picture: all that it stands for}
    for row, version in described(json.loads((folder/'emoji.json').read_text())):
        path = folder/'img'/'google'/'64'/f'{row["id"].lower()}.png'
        levels = np.asarray(fit_image(open_image(path).convert('RGB'), SIDE))
        # of copies stays the one that claims least: no gender, the older, the shorter name
        claim = row['gender'] not in ('', 'person'), version, len(row['name'])
        found.setdefault(levels.tobytes(), []).append((claim, row, levels))
    kept = [min(copies, key=lambda c: c[0]) for copies in found.values()]
    table = json.dumps([row for _, row, _ in kept], ensure_ascii=False).encode()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.stack([levels for _, _, levels in kept]), table=np.frombuffer(table, np.uint8))
    return buffer.getvalue(), len(kept)


def main():
    arguments = [a for a in sys.argv[1:] if a != '--check']
    if len(arguments) != 1: sys.exit(__doc__)
    made, count = packed(Path(arguments[0]))
    if '--check' in sys.argv[1:]:
        if TARGET.read_bytes() != made: sys.exit(f'{TARGET} differs from what this script makes')
        print(f'{TARGET.name}: {len(made):,} bytes, the same')
    else:
        TARGET.write_bytes(made)
        print(f'{TARGET}: {count:,} pictures, {len(made):,} bytes')


if __name__ == '__main__': main()
