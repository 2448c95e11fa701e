"""Does it draw what the words say? python bench/words.py [MODEL]   (three quarters of an hour on 2 CPU cores, most of it in the part `ways`)

The shipped model of emoji, read by the shipped judges: of skin, gender and trade, and of pictures and texts. `ways` trains denoisers on latents of
the shipped autoencoder, two minutes each and three seeds: told the mean of the tokens, the tokens by cross-attention, both, both of our own
encoder, both of captions that do not name the skin, or both without noise on the captions. Each part is a key of ldm_nb/results/words.json, and is kept once it is there.
"""
import os
import sys
import time

os.environ.setdefault('TQDM_DISABLE', '1')
os.environ.setdefault('ACCELERATE_MIXED_PRECISION', 'bf16')
import torch
import torch.nn.functional as F

from ldm_nb.attributes import drop_conditions
from ldm_nb.core import PACKAGE, as_floats, default_device, generator, read_json, seed_for, write_json
from ldm_nb.data import emoji, emoji_table
from ldm_nb.denoiser import diffusion_loss, guided
from ldm_nb.faces import agreement, load_judge
from ldm_nb.features import nearest
from ldm_nb.forward import Schedule
from ldm_nb.loop import fit
from ldm_nb.samplers import walk
from ldm_nb.text import INVENTED, PEOPLE, WordUNet, combination_held_out, load_picture_texts, people_values, retrieval
from ldm_nb.training import LatentDiffusion
from ldm_nb.vae import encode_all
from ldm_nb.words import CaptionTable, emoji_captions, sentences, word_features

OUT = PACKAGE/'results'/'words.json'
MINUTES, SEEDS = 2., (0, 1, 2)
BEFORE = 'runs/emoji/model' # of tools/make_weights.py --only words
NEAR = .2 # of a range of 2: nearer is a copy to the eye
ROWS, DATA = emoji_table('all'), emoji('all')
VALUES = people_values(ROWS)
UNSEEN = torch.tensor([combination_held_out(row) for row in ROWS])
TRAINED = ~VALUES.isnan().any(1) & ~UNSEEN
DESIGNS = torch.isin(DATA.hashes(), emoji('test').hashes()) # that no model was trained on


def captions(mask, which=0): # of the pictures in a mask
    rows = [DATA.captions[i] for i in mask.nonzero()[:, 0].tolist()]
    return [own[min(which, len(own) - 1)] for own in rows]


def read(judge, x, mask): # shares as asked: of each attribute, and of all three
    values = VALUES[mask]
    found = judge.read(x)
    return agreement(values, found, PEOPLE) | dict(all=(found == values).all(1).double().mean().item())


def judges(ldm, judge, texts):
    "What the judges make of real pictures that they were not trained on, and of these after encoder and decoder."
    x = DATA[UNSEEN].levels
    new = UNSEEN | DESIGNS
    pictures, words = texts.of_pictures(as_floats(DATA[new].levels)), texts.of_texts(captions(new))
    return dict(real=read(judge, x, UNSEEN), reconstructed=read(judge, ldm.reconstruct(x), UNSEEN), n=int(UNSEEN.sum()),
                retrieval={k: retrieval(pictures, words, k) for k in (10, 100)}, retrieval_n=int(new.sum()))


def paraphrased(mask): # as no caption says it; needs the extra [text]
    who = dict(woman='a woman', man='a man', person='somebody')
    rows = [ROWS[i] for i in mask.nonzero()[:, 0].tolist()]
    return [f'{who[row["gender"]]} whose skin is {row["skin"]} and who works as {row["role"]}' for row in rows]


def copyist():
    "What one would get right who draws the training picture whose caption is nearest (cosine of the mean features)."
    known = ~UNSEEN & ~DESIGNS
    mean = {name: F.normalize(sentences(captions(mask)).nanmean(1), dim=1) for name, mask in dict(unseen=UNSEEN, known=known).items()}
    taken = VALUES[known][(mean['unseen'] @ mean['known'].T).argmax(1)]
    same = taken == VALUES[UNSEEN]
    return {a.name: share for a, share in zip(PEOPLE, same.double().mean(0).tolist())} | dict(all=same.all(1).double().mean().item(), n=len(same))


def combinations(ldm, judge, texts):
    "Samples of every combination, trained on and not, asked in two ways of the captions and in one of our own."
    out = {'unseen, nearest caption': copyist()}
    for name, mask in dict(trained=TRAINED, unseen=UNSEEN).items():
        for way, which in dict(plain=0, phrase=1, paraphrase=2).items():
            repeat = 1 if name == 'trained' else 4
            said = (paraphrased(mask) if way == 'paraphrase' else captions(mask, which))*repeat
            x = ldm.sample(prompts=said, seed=which)
            shares = [read(judge, part, mask) for part in x.chunk(repeat)]
            out[f'{name}, {way}'] = {k: sum(s[k] for s in shares)/repeat for k in shares[0]} | dict(n=len(said))
            print(name, way, out[f'{name}, {way}'], flush=True)
    return out


def retrieved(ldm, judge, texts):
    "Samples for captions of pictures held out: how often the own caption is the nearest of 10 and of 100."
    out = {}
    for name, mask in dict(both=UNSEEN | DESIGNS, combinations=UNSEEN, designs=DESIGNS & ~UNSEEN).items():
        said = captions(mask)
        words = texts.of_texts(said)
        real, drawn = (texts.of_pictures(as_floats(x)) for x in (DATA[mask].levels, ldm.sample(prompts=said, seed=3)))
        for k in (10, 100):
            if len(said) >= k:
                out[f'{name}, among {k}'] = dict(real=retrieval(real, words, k), samples=retrieval(drawn, words, k), n=len(said))
        print(name, out, flush=True)
    return out


def memory(ldm, judge, texts):
    "How far samples are from the nearest training picture (root of the mean square over pixels), beside real pictures that were held out."
    known = as_floats(DATA[~UNSEEN & ~DESIGNS].levels).flatten(1)
    every = (~UNSEEN & ~DESIGNS).nonzero()[:, 0][::10]
    said = {'captions trained on': [DATA.captions[i][0] for i in every.tolist()], 'unseen combinations': captions(UNSEEN),
            'unseen designs': captions(DESIGNS & ~UNSEEN), 'invented prompts': [*INVENTED]*4}
    pictures = {name: ldm.sample(prompts=texts, seed=5).cpu() for name, texts in said.items()}
    pictures |= {'real: unseen combinations': as_floats(DATA[UNSEEN].levels), 'real: unseen designs': as_floats(DATA[DESIGNS & ~UNSEEN].levels),
                 'reconstructions of training pictures': ldm.reconstruct(DATA[every].levels).cpu()}
    out = {}
    for name, x in pictures.items():
        far = nearest(x.flatten(1), known)[0]/known.shape[1]**.5
        out[name] = dict(median=far.median().item(), below=(far < NEAR).double().mean().item(), n=len(x))
        print(name, out[name], flush=True)
    return out


def without_noise(ldm, judge, texts):
    "What the noise on captions changes: the shipped model, and the one that it was trained on from (an hour, no noise)."
    known, new = as_floats(DATA[~UNSEEN & ~DESIGNS].levels).flatten(1), DESIGNS & ~UNSEEN
    out = {}
    for name, model in dict(before=LatentDiffusion.from_pretrained(BEFORE), shipped=ldm).items():
        how = dict(steps=10, guidance=2., autoguidance=1.)
        invented = [model.sample(prompts=INVENTED, seed=seed, **how).flatten(1) for seed in range(4)]
        far = nearest(torch.cat(invented), known)[0]/known.shape[1]**.5
        designs = texts.of_pictures(model.sample(prompts=captions(new), seed=3, **how).to(ldm.device))
        out[name] = read(judge, model.sample(prompts=captions(UNSEEN), seed=0, **how), UNSEEN)
        out[name] |= dict(nearest=far.median().item(), variety=(invented[0] - invented[1]).square().mean().sqrt().item(),
                          designs=retrieval(designs, texts.of_texts(captions(new)), 100))
        print(name, out[name], flush=True)
    return out


def guiding(ldm, judge, texts):
    "How hard to lead: combinations that were trained on, at several strengths (the others are for measuring)."
    rows, said = [], captions(TRAINED)
    for steps, g, a in ((10, 1, 1), (10, 1.5, 1), (10, 2, 1), (10, 3, 1), (10, 5, 1), (5, 2, 1), (20, 2, 1), (10, 1, 2), (10, 2, 2)):
        if a == 1 or ldm.guide:
            x = ldm.sample(prompts=said, guidance=g, autoguidance=a, steps=steps, seed=4)
            rows.append(dict(steps=steps, guidance=g, autoguidance=a) | read(judge, x, TRAINED))
            print(rows[-1], flush=True)
    return rows


def own_features(texts):
    "Tokens of the text encoder that was trained by contrast, as `word_features` gives those of the language model."
    encoder = texts.text
    @torch.no_grad()
    def features(given):
        rows = encoder(encoder.ids(given)) if any(given) else torch.empty(len(given), 1, encoder.positions.shape[1])
        return [row[~row.isnan().any(1)] if text else row[:0] for text, row in zip(given, rows)]
    return features


def padded(rows): # a list of (tokens, d) -> (n, l, d)
    return torch.nn.utils.rnn.pad_sequence(rows, True, float('nan'))


def trained_so(latents, table, seed, cross, mean):
    "A denoiser of words after MINUTES, averaged; its sizes are those of the shipped one."
    torch.manual_seed(seed_for(seed, 'ways'))
    net = WordUNet(latents.shape[1], (64, 128), emb_dim=384, features=table.features, cross=cross)
    net.label.layers[-1].requires_grad_(mean) # it begins at zero: not trained, the mean says nothing
    def loss(model, i):
        return diffusion_loss(model, latents[i], drop_conditions(table[i], 0, .1))
    run = fit(net, loss, len(latents), 128, 3e-3, seconds=60*MINUTES, seed=seed, ema_decay=.995, stage='ways')
    return run['ema'].eval(), len(run['losses'])


def ways(ldm, judge, texts):
    """Mean against tokens, borrowed against own, captions with and without the skin, with and without noise: equal minutes, three seeds.

    `designs`: how often the own caption of a design held out is found among 100. `variety`: how far two samples for an invented prompt are
    from each other, and `nearest` from their nearest training pictures (root of the mean square over pixels; the median of the latter)."""
    known, new = ~UNSEEN & ~DESIGNS, DESIGNS & ~UNSEEN
    latents, pixels = ldm.stats.normalize(encode_all(ldm.autoencoder, DATA[known].levels)), as_floats(DATA[known].levels).flatten(1)
    own, said = own_features(texts), [DATA.captions[i] for i in known.nonzero()[:, 0].tolist()]
    short = [emoji_captions(ROWS[i] | dict(skin='')) for i in known.nonzero()[:, 0].tolist()]
    settings = dict(mean=dict(cross=False), tokens=dict(mean=False), both={}, own=dict(features=own), short=dict(said=short), exact=dict(noise=0.))
    out = {}
    for name, how in settings.items():
        features = how.get('features', word_features)
        table = CaptionTable(how.get('said', said), features)
        table.noise = how.get('noise', 1.2)*table.tokens.std().item() # in units of the features
        for seed in SEEDS:
            net, steps = trained_so(latents, table, seed, how.get('cross', True), how.get('mean', True))
            def draw(asked, *key):
                rows = padded(features(asked)).to(ldm.device)
                denoise = guided(net, rows, Schedule('flow'), guidance=2., interval=(.2, .9))
                noise = torch.randn(len(asked), *latents.shape[1:], generator=generator(seed, 'ways', *key)).to(ldm.device)
                with torch.no_grad():
                    return ldm.decode(walk(denoise, noise, Schedule('flow'), 10, 'dpm'))
            row = dict(steps=steps)
            for part, mask in dict(trained=TRAINED, unseen=UNSEEN).items():
                for way, which in dict(plain=0, phrase=1).items():
                    row[f'{part}, {way}'] = read(judge, draw(captions(mask, which), which), mask)
            pictures, right = texts.of_pictures(draw(captions(new), 'designs').to(ldm.device)), texts.of_texts(captions(new))
            row['designs'] = retrieval(pictures, right, 100)
            two = [draw(INVENTED, 'invented', k) for k in range(2)]
            row['variety'] = (two[0] - two[1]).square().mean().sqrt().item()
            row['nearest'] = (nearest(torch.cat(two).flatten(1), pixels)[0]/pixels.shape[1]**.5).median().item()
            out.setdefault(name, []).append(row)
            print(name, seed, row, flush=True)
    return out


def main():
    ldm = LatentDiffusion.from_pretrained(sys.argv[1] if sys.argv[1:] else 'emoji')
    judge, texts = load_judge(PACKAGE/'weights'/'emoji-judge'), load_picture_texts()
    rows = read_json(OUT) if OUT.exists() else {}
    for part in (judges, guiding, combinations, retrieved, memory, ways, without_noise):
        if part.__name__ not in rows:
            start = time.perf_counter()
            rows[part.__name__] = part(ldm, judge, texts)
            rows.setdefault('seconds', {})[part.__name__] = round(time.perf_counter() - start)
            write_json(OUT, rows)
            print(part.__name__, rows['seconds'][part.__name__], 's', flush=True)
    write_json(OUT, rows | dict(card={k: ldm.card[k] for k in ('images', 'steps', 'seconds', 'parameters', 'seed', 'device')}, settings=ldm.settings()))


if __name__ == '__main__':
    main()
