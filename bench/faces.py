"""Is it what was asked for? python bench/faces.py [MODEL]   (half an hour on 2 CPU cores)

The shipped model of faces, read by the shipped judge of attributes; EfficientNet-Lite0 (own.py's judge: 128 directions) gives
distances, KID, precision and recall against renders. Each part is a key of ldm_nb/results/faces.json, and is kept once it is there.
"""
import os
import sys
import time

os.environ.setdefault('TQDM_DISABLE', '1')
import torch

from ldm_nb.attributes import attribute_row
from ldm_nb.core import PACKAGE, as_floats, read_json, write_json
from ldm_nb.evaluation import kid, precision_recall
from ldm_nb.faces import agreement, edit, inpaint, judge_errors, load_judge, matches
from ldm_nb.features import extract
from ldm_nb.training import LatentDiffusion
from ldm_nb.world import EXPRESSIONS, FACE_ATTRIBUTES, FACE_NAMES, FACTORS, HELD_OUT, change, column, faces, has, render, sample_params
from own import Judge
from tables import put_table

OUT = PACKAGE/'results'/'faces.json'
CHOICES = [a for a in FACE_ATTRIBUTES if a.choices]


def asked_for(n, **attributes): # (n, k)
    return attribute_row(attributes, FACE_ATTRIBUTES).expand(n, -1)


def confusion(ldm, judge):
    "500 samples of each expression, nothing else asked: what the judge reads; distances to renders."
    quality, table, images = Judge(faces(4000, 64, seed=300)), {}, []
    renders = faces(2500, 64, seed=301)
    seconds = time.perf_counter()
    for name in EXPRESSIONS:
        x = ldm.sample(500, dict(expression=name))
        images.append(x)
        table[name] = judge.read(x)[:, 0].long().bincount(minlength=5).tolist()
    seconds = time.perf_counter() - seconds
    images = torch.cat(images)
    real, ours, floor = (extract(v, 'effnet').double() for v in (faces(2500, 64, seed=302).levels, images, renders.levels))
    def shares(x):
        return [v.mean().item() for v in precision_recall(real, x)]
    return dict(table=table, right=sum(row[i] for i, row in enumerate(table.values()))/2500,
                images_per_second=2500/seconds, samples=quality(images), floor=quality(renders.levels),
                reconstructions=quality(ldm.decode(ldm.encode(renders.levels[:500]))), floor_500=quality(renders.levels[:500]),
                precision_recall=shares(ours), floor_precision_recall=shares(floor))


SETTINGS = [dict(steps=steps, guidance=g, autoguidance=a) for steps, g, a in (
    (7, 1, 1), (20, 1, 1), (10, 2, 1), (10, 3, 1), (10, 4, 1), (10, 1, 2), (10, 2, 2), (10, 3, 2), (10, 4, 2), (10, 6, 2), (10, 4, 1.5), (10, 4, 3), (20, 4, 2))]


def leading(ldm, judge, n=500):
    "How hard to lead: 500 samples of which only the expression is asked, at several settings; without a guide, no autoguidance."
    quality, asked, rows = Judge(faces(2000, 64, seed=310)), asked_for(n).clone(), []
    asked[:, 0] = torch.arange(n) % len(EXPRESSIONS)
    for settings in SETTINGS:
        if settings['autoguidance'] == 1 or ldm.guide:
            x = ldm.sample(n, asked, **settings, seed=5)
            rows.append(settings | quality(x) | dict(right=(judge.read(x)[:, 0] == asked[:, 0]).double().mean().item()))
            print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
    renders = faces(n, 64, seed=311).levels
    return dict(rows=rows, floor=quality(renders), reconstructions=quality(ldm.decode(ldm.encode(renders))))


def leading_table(found):
    lines = ['| steps | guidance | autoguidance | distance | as asked |', '|---|---|---|---|---|']
    for row in found['rows']:
        lines.append(f'| {row["steps"]} | {row["guidance"]:g} | {row["autoguidance"]:g} | {row["frechet_distance"]:.0f} | {100*row["right"]:.0f} % |')
    lines += [f'| 500 {kind} | | | {found[key]["frechet_distance"]:.0f} | |' for kind, key in (('other renders', 'floor'), ('of them, encoded and decoded', 'reconstructions'))]
    return '\n'.join(lines)


def choices(ldm, judge, n=200):
    "200 samples of each choice, nothing else asked: how many have it; KID against renders that have it, and its floor."
    many, out = sample_params(30_000, seed=303), {}
    for i, a in enumerate(FACE_ATTRIBUTES[:len(CHOICES)]):
        for k, choice in enumerate(a.choices):
            x = ldm.sample(n, {a.name: choice}, seed=k)
            having = many[many[:, i] == k]
            real, again = (extract(render(having[s:s + 2*n]), 'effnet').double() for s in (0, 2*n))
            out.setdefault(a.name, {})[choice] = dict(
                right=(judge.read(x)[:, i] == k).double().mean().item(),
                renders_right=(judge.read(render(having[:500]))[:, i] == k).double().mean().item(),
                kid_x1000=1000*kid(extract(x, 'effnet').double(), real), floor=1000*kid(again[:n], real))
        print(a.name, {c: round(v['right'], 3) for c, v in out[a.name].items()}, flush=True)
    return out


def numbers(ldm, judge, n=300):
    "300 samples that are asked for one number, evenly spread: asked, read; and what the judge makes of renders."
    out = {}
    for i, a in enumerate(FACE_ATTRIBUTES):
        if a.choices:
            continue
        asked = torch.full((n, len(FACE_ATTRIBUTES)), torch.nan)
        asked[:, i] = torch.linspace(a.low, a.high, n)
        read = judge.read(ldm.sample(n, asked, seed=i))[:, i]
        whole = sample_params(n, seed=304 + i, which='all')
        whole[:, i] = asked[:, i]
        drawn = judge.read(render(whole))[:, i]
        def error(v):
            return ((v - asked[:, i]).abs().mean()/(a.high - a.low)).item()
        out[a.name] = dict(asked=[round(v, 3) for v in asked[:, i].tolist()], read=[round(v, 3) for v in read.tolist()],
                           error=error(read), judge_error=error(drawn),
                           correlation=torch.corrcoef(torch.stack([asked[:, i], read]))[0, 1].item())
        print(a.name, {k: round(v, 3) for k, v in out[a.name].items() if k not in ('asked', 'read')}, flush=True)
    return out


def whole_rows(ldm, judge, n=1000):
    "1,000 faces of which all 22 values are asked; and how well the judge reads renders of these rows, and reconstructions."
    values = sample_params(n, seed=330)
    x = render(values)
    pictures = dict(samples=ldm.sample(n, values), reconstructions=ldm.decode(ldm.encode(x)), renders=x)
    return {kind: agreement(values, judge.read(v), FACE_ATTRIBUTES) for kind, v in pictures.items()}


def held_out(ldm, judge, n=300):
    "300 samples of each pair that no model was trained on: how many have both."
    out = {}
    for pair in HELD_OUT:
        asked = asked_for(n, **pair)
        wrong = ((judge.read(ldm.sample(n, pair)) != asked) & ~asked.isnan()).any(1)
        drawn = sample_params(30_000, seed=331, which='held out')
        drawn = drawn[((drawn == asked[:1]) | asked[:1].isnan()).all(1)][:n]
        real = ((judge.read(render(drawn)) != asked[:len(drawn)]) & ~asked[:len(drawn)].isnan()).any(1)
        out[', '.join(f'{name} {choice}' for name, choice in pair.items())] = dict(right=1 - wrong.double().mean().item(), renders=1 - real.double().mean().item())
    return out


def grey(ldm, judge, n=500):
    "The share of grey hair: among old faces of the data, and among samples that are asked for age 1."
    data = sample_params(60_000, seed=335)
    out = {'data, age above 0.97': has(data, 'hair', 'grey')[column(data, 'age') > .97].double().mean().item()}
    for g in (1., 2., 4.):
        for name, wish in {'age 1': dict(age=1.), 'age 1 and brown hair': dict(age=1., hair='brown')}.items():
            read = judge.read(ldm.sample(n, wish, guidance=dict(age=g), seed=6))
            out[f'asked for {name}, guidance on age {g:g}'] = has(read, 'hair', 'grey').double().mean().item()
    return out


def moved_away(values, a): # the same rows with one attribute changed, and which rows that are
    i = FACE_NAMES.index(a.name)
    if a.choices:
        new = change(values, **{a.name: a.choices[1]})
        return new[values[:, i] != 1], values[values[:, i] != 1]
    new = values.clone()
    new[:, i] = torch.where(values[:, i] > (a.low + a.high)/2, a.low, a.high)
    return new, values


def moves(ldm, judge, n=150):
    "Whole rows of which one attribute is changed, same noise: how far every attribute moves, in samples and in renders."
    out = {}
    for name in ('expression', 'glasses', 'hat', 'beard', 'hair', 'skin', 'age', 'turn', 'gaze_x', 'light'):
        new, values = moved_away(sample_params(n, seed=340, which='all'), FACE_ATTRIBUTES[FACE_NAMES.index(name)])
        before = judge.read(ldm.sample(len(values), values)), judge.read(render(values))
        after = judge.read(ldm.sample(len(values), new)), judge.read(render(new))
        out[name] = {kind: [round(v, 4) for v in judge_errors(a, b, FACE_ATTRIBUTES).values()]
                     for kind, b, a in zip(('samples', 'renders'), before, after)}
    return out


REST = [i for i, name in enumerate(FACE_NAMES) if name not in ('expression', *FACTORS)]


WAYS = {'row, noise': (True, False, 1.), 'row, inversion': (True, True, 1.), 'wish, noise': (False, False, 1.), 'wish, inversion': (False, True, 1.),
        'wish, guided inversion': (False, True, 4.), 'row, guided inversion': (True, True, dict(expression=3.))} # told the row? inverted? guidance


def edits(ldm, judge, n=200):
    """200 renders that are not happy, made happy, at four strengths. Told is the whole row as the judge reads it, or the
    expression alone (before and after); the noise is random, or found by inversion. What stays is judged against the reconstruction."""
    values = sample_params(3*n, seed=350)
    values = values[~has(values, 'expression', 'happy')][:n]
    x, out = render(values), {}
    read = judge.read(ldm.decode(ldm.encode(x)))
    mood = torch.full_like(read, torch.nan)
    mood[:, 0] = read[:, 0]
    for way, (row, inverted, guidance) in WAYS.items():
        wanted, known = (change(read, expression='happy'), read) if row else (asked_for(n, expression='happy'), mood)
        for strength in (.6, .7, .8, .9):
            new = edit(ldm, x, wanted, strength, known if inverted else None, guidance=guidance)
            seen = judge.read(new)
            kept = matches(read, seen, FACE_ATTRIBUTES)[:, REST]
            found = dict(changed=has(seen, 'expression', 'happy').double().mean().item(), kept=kept.double().mean().item(),
                         each={FACE_NAMES[i]: v for i, v in zip(REST, kept.double().mean(0).tolist())},
                         all_but_two=(kept.sum(1) >= len(REST) - 2).double().mean().item(), all=kept.all(1).double().mean().item())
            out[f'{way} {strength}'] = found
            print(way, strength, {k: round(v, 3) for k, v in found.items() if k != 'each'}, flush=True)
    return out


def inpainting(ldm, judge, n=200):
    "Glasses masked away: gone? The mouth alone made happy? And the jump of brightness across the rim of the mask, given and new."
    values = sample_params(6*n, seed=360)
    values = values[has(values, 'glasses', 'yes')][:n]
    x, mask = render(values), torch.zeros(1, 1, 64, 64)
    mask[..., 20:40, 12:52] = 1
    read = judge.read(x)
    asked = dict(row=change(read, glasses='no'), wish=asked_for(n, glasses='no'))
    def jump(v, top=20, bottom=40, left=12, right=52): # across the upper and the lower edge
        return torch.stack([(v[..., i, left:right] - v[..., i - 1, left:right]).abs().mean() for i in (top, bottom)]).mean().item()
    out = dict(jump_given=jump(as_floats(x)), jump_without=jump(as_floats(render(change(values, glasses='no')))))
    for told, wanted in asked.items():
        new = inpaint(ldm, x, mask, wanted)
        seen = judge.read(new)
        out[told] = dict(gone=has(seen, 'glasses', 'no').double().mean().item(), jump=jump(new), same_expression=(seen[:, 0] == read[:, 0]).double().mean().item())
    return out | dict(mouth=mouth_only(ldm, judge, jump, n))


def mouth_only(ldm, judge, jump, n):
    "Sad faces of which the mouth alone is drawn anew, told that they are happy; brows and eyes stay as they are."
    values = sample_params(10*n, seed=361)
    values = values[has(values, 'expression', 'sad')][:n]
    x, mask, box = render(values), torch.zeros(1, 1, 64, 64), (36, 52, 20, 48)
    mask[..., 36:52, 20:48] = 1
    new = inpaint(ldm, x, mask, change(judge.read(x), expression='happy'), guidance=dict(expression=3.))
    seen, given = judge.read(new), judge.read(x)
    curve = FACE_NAMES.index('mouth_curve')
    return dict(happy=has(seen, 'expression', 'happy').double().mean().item(), n=len(x), jump_given=jump(as_floats(x), *box), jump=jump(new, *box),
                mouth_curve=[v[:, curve].mean().item() for v in (given, seen)], brow_angle=[v[:, FACE_NAMES.index('brow_angle')].mean().item() for v in (given, seen)])


def main():
    ldm, judge = LatentDiffusion.from_pretrained(sys.argv[1] if sys.argv[1:] else 'faces'), load_judge()
    rows = read_json(OUT) if OUT.exists() else {}
    for part in (leading, confusion, whole_rows, held_out, choices, numbers, grey, moves, edits, inpainting):
        if part.__name__ not in rows:
            start = time.perf_counter()
            rows[part.__name__] = part(ldm, judge)
            rows.setdefault('seconds', {})[part.__name__] = round(time.perf_counter() - start)
            write_json(OUT, rows)
            print(part.__name__, rows['seconds'][part.__name__], 's', flush=True)
    write_json(OUT, rows | dict(card={k: ldm.card[k] for k in ('images', 'steps', 'seconds', 'parameters', 'seed', 'device')}, settings=ldm.settings()))
    put_table('leading', leading_table(rows['leading']))


if __name__ == '__main__':
    main()
