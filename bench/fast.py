"""Pictures in one to four evaluations, four ways: python bench/fast.py [--minutes 7.5] [--only distilled]   (three quarters of an hour on 2 cores)

Each way begins with the shipped denoiser and trains for the same time, what its teacher takes included (fifteen minutes of one core); then 500 samples from each of
three seeds in 1, 2 and 4 evaluations, judged as in peers.py (EfficientNet-Lite0, 128 leading directions of the test split).
  flow map   MeanFlow on the latents of all training images: r = t in three quarters of a batch; its velocity is the teacher's, guided
  kernel     a drift towards data and away from samples of the same class, in features of our classifier; no teacher, no derivative
  unrolled   walks of 1, 2 or 4 steps, the gradient through all of them, against an energy distance in the same features
  distilled  `distil`: the ends of the teacher's walks, learned from their states in the noisy half; no data
How long each took stands beside it in the file (`unrolled` was given --minutes 4). Finished ways are kept in runs/fast (safetensors) and not trained again. Writes ldm_nb/results/fast.json; needs the full Fashion-MNIST.
"""
import argparse
import copy
import os
import time
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
import torch
import torch.nn.functional as F
from torch import nn

from ldm_nb.core import PACKAGE, generator, load_tensors, read_json, save_tensors, write_json
from ldm_nb.data import crop_images, fashion_mnist, pad_images
from ldm_nb.denoiser import guided, timestep_embedding
from ldm_nb.features import frozen_classifier
from ldm_nb.forward import Schedule, add_noise, expand_like
from ldm_nb.loop import fit
from ldm_nb.samplers import _student, consistency, distil, energy_distance, jumps, spaced_times
from ldm_nb.training import LatentDiffusion
from ldm_nb.vae import encode_all
from peers import judge

SAMPLES, SEEDS, COUNTS, RUNS = 500, 3, (1, 2, 4), Path('runs/fast')
SHIPPED = dict(n=32_000, num_steps=3_000) # as in tools/make_weights.py
FLOW = Schedule('flow')


class FlowMap(nn.Module):
    "A denoiser that also learns how far it is to jump: its time embedding gets that of t - r added."
    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(True)
        width = net.config['emb_dim']
        self.span = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.span[2].weight)
        nn.init.zeros_(self.span[2].bias)
        self.labels = None
    def forward(self, x, t, r):
        span = self.span(timestep_embedding(t - r, 128))
        hook = self.net.time.register_forward_hook(lambda module, args, out: out + span)
        try:
            return self.net(x, t, self.labels)
        finally:
            hook.remove()


def flow_map(ldm, data, seconds):
    "MeanFlow with the guided velocity of the teacher in the place of eps - x0."
    latents = ldm.stats.normalize(encode_all(ldm.autoencoder, pad_images(data.levels, ldm._multiple)))
    how = ldm.settings()
    def loss(model, i):
        x0, y = latents[i], data.labels[i]
        b, eps = len(x0), torch.randn(x0.shape)
        t, r = torch.rand(2, b).sort(0, descending=True)[0]
        r = r.where(torch.rand(b) >= .75, t)
        x, delta = add_noise(FLOW, x0, eps, t), .01
        inside = (how['interval'][0] <= t) & (t <= how['interval'][1])
        scale = 1 + (how['autoguidance'] - 1)*expand_like(inside.float(), x)
        model.labels = y
        with torch.no_grad():
            plain, worse = ldm.ema(x, t, y), ldm.guide(x, t, y)
            v = worse + scale*(plain - worse)
            change = model(x + delta*v, t + delta, r) - model(x - delta*v, t - delta, r)
            wanted = v - expand_like(t - r, x)*change/(2*delta)
        error = (model(x, t, r) - wanted).square().mean((1, 2, 3))
        return (error/(error.detach() + 1e-2)).mean() # their adaptive weight, p = 1
    net = FlowMap(ldm.ema)
    run = fit(net, loss, len(data), 64, 5e-4, seconds=seconds, seed=0, stage='flow map', ema_decay=.998)
    return run['ema'], dict(steps=len(run['losses']), seconds=round(run['seconds']))


def classifier_levels(images): # [(b, d)], the deepest last
    "Features of our classifier at three depths, averaged over patches, and the vector before its last layer."
    out, net = [], frozen_classifier(images.device).body
    for i, layer in enumerate(net):
        images = layer(images)
        if i in (1, 4, 6):
            out.append(F.adaptive_avg_pool2d(images, {1: 7, 4: 4, 6: 2}[i]).flatten(1))
    return [*out, images]


class Judge:
    "What real images are like, in the principal directions of each level, and which of them are of a class."
    def __init__(self, data, n=20_000, directions=128):
        with torch.no_grad():
            parts = [classifier_levels(data[i:i + 500].images) for i in range(0, n, 500)]
        self.maps, self.real = [], []
        for level in zip(*parts):
            v = torch.cat(level)
            mean, U = v.mean(0), torch.linalg.eigh(torch.cov(v.T))[1][:, -directions:]
            q = (v - mean) @ U
            scale = torch.cdist(q[:500], q[500:1000]).mean()
            self.maps.append((mean, U/scale))
            self.real.append(q/scale)
        self.of_class = [torch.where(data.labels[:n] == c)[0] for c in range(10)]
    def __call__(self, images):
        return [(v - mean) @ U for v, (mean, U) in zip(classifier_levels(images), self.maps)]
    def some(self, c, n): # real ones of class c, at each level
        pick = self.of_class[c][torch.randint(len(self.of_class[c]), (n,))]
        return [real[pick] for real in self.real]


def drift(x, y, temperatures=(.05, .1, .2)):
    "Where samples x should go: to data y, away from each other, each force forgetting what is far (Deng et al. 2026)."
    total = 0
    for T in temperatures:
        far = torch.cat([torch.cdist(x, y), torch.cdist(x, x) + 1e6*torch.eye(len(x))], 1)/-T
        A = (far.softmax(1)*far.softmax(0)).sqrt()
        P, N = A[:, :len(y)], A[:, len(y):]
        V = (P*N.sum(1, keepdim=True)) @ y - (N*P.sum(1, keepdim=True)) @ x
        total = total + V/(V.square().sum(1).mean().sqrt() + 1e-8)
    return total


def decoded(ldm, z): # with gradients
    images = ldm.autoencoder.decode(ldm.stats.denormalize(z))
    return crop_images(images.clamp(-1, 1), ldm.image_size)


def late(k): return spaced_times('late', k, FLOW).float()


def kernel(ldm, data, seconds, each=24, classes=4):
    "In turn 1, 2 and 4 evaluations; the gradient goes through the last one that is made."
    net, real, turn = copy.deepcopy(ldm.ema).requires_grad_(True), Judge(data), [0]
    def loss(model, i):
        k, turn[0] = COUNTS[turn[0] % 3], turn[0] + 1
        times, stop = late(k), int(torch.randint(k, (1,)))
        chosen = torch.randperm(10)[:classes]
        y, x = chosen.repeat_interleave(each), torch.randn(classes*each, *ldm._latent_shape)
        with torch.no_grad():
            for t, s in zip(times[:stop], times[1:]):
                x0 = x - t*model(x, t.expand(len(x)), y)
                x = (1 - s)*x0 + s*torch.randn(x.shape)
        t = times[stop].expand(len(x))
        features, total = real(decoded(ldm, x - expand_like(t, x)*model(x, t, y))), 0
        for of_class, c in enumerate(chosen):
            part = slice(of_class*each, (of_class + 1)*each)
            for f, wanted in zip(features, real.some(c, 96)):
                total = total - (f[part]*drift(f[part].detach(), wanted)).sum(1).mean()
        return total/classes/len(features)
    run = fit(net, loss, 1000, 1, 5e-4, seconds=seconds, seed=0, stage='kernel', ema_decay=.998)
    return run['ema'], dict(steps=len(run['losses']), seconds=round(run['seconds']))


def unrolled(ldm, data, seconds, each=8):
    "In turn 1, 2 and 4 Euler steps, and the gradient through all of them."
    net, real, turn = copy.deepcopy(ldm.ema).requires_grad_(True), Judge(data), [0]
    def loss(model, i):
        k, turn[0] = COUNTS[turn[0] % 3], turn[0] + 1
        y = torch.arange(10).repeat_interleave(each)
        def velocity(x, t, r): return model(x, t, y)
        z = jumps(velocity, torch.randn(len(y), *ldm._latent_shape), k)
        features, total = real(decoded(ldm, z)), 0
        for c in range(10):
            part = slice(c*each, (c + 1)*each)
            total = total + sum(energy_distance(f[part], w) for f, w in zip(features, real.some(c, 32)))/10
        everything = [torch.cat(level) for level in zip(*(real.some(c, 32) for c in range(10)))]
        total = total + sum(energy_distance(f, w) for f, w in zip(features, everything))
        return total/len(features)
    run = fit(net, loss, 1000, 1, 3e-4, seconds=seconds, seed=0, stage='unrolled', ema_decay=.998)
    return run['ema'], dict(steps=len(run['losses']), seconds=round(run['seconds']))


def distilled(ldm, data, seconds):
    "What tools/make_weights.py ships, the same call, which takes about as long."
    began = time.perf_counter()
    fast, run = distil(ldm, **SHIPPED, checkpoint=RUNS/'checkpoints')
    spent = time.perf_counter() - began
    print(f'{spent:.0f} s in all', flush=True)
    return fast.ema, dict(SHIPPED, seconds=round(spent))


WAYS = {'flow map': flow_map, 'kernel': kernel, 'unrolled': unrolled, 'distilled': distilled}


@torch.no_grad()
def draw(way, ldm, net, k, seed):
    "500 pictures in k evaluations, as this way draws them."
    if way == 'distilled':
        return _student(ldm, net, {}).sample(SAMPLES, torch.arange(SAMPLES) % 10, steps=k, seed=seed)
    labels, out = torch.arange(SAMPLES) % 10, []
    noise, fresh = torch.randn(SAMPLES, *ldm._latent_shape, generator=generator(seed, 'sample')), generator(seed, 'fresh')
    for x, y in zip(noise.split(250), labels.split(250)):
        if way == 'flow map':
            net.labels = y
            z = jumps(net, x, k)
        elif way == 'unrolled':
            z = jumps(lambda x, t, r: net(x, t, y), x, k)
        else:
            z = consistency(guided(net, y, ldm.schedule, ldm.prediction_type), x, ldm.schedule, late(k), fresh)
        out.append(ldm.decode(z))
    return torch.cat(out)


def measured(way, ldm, net):
    rows = []
    for k in COUNTS:
        row = dict(way=way, evaluations=k, frechet_distance=[], kid_x1000=[], images_per_second=[])
        for seed in range(SEEDS):
            began = time.perf_counter()
            images = draw(way, ldm, net, k, seed)
            row['images_per_second'].append(SAMPLES/(time.perf_counter() - began))
            found = judge(images)
            row['frechet_distance'].append(found['frechet_distance'])
            row['kid_x1000'].append(found['kid_x1000'])
        read = frozen_classifier(torch.device('cpu'))(images).argmax(1)
        row['class_accuracy'] = (read == torch.arange(SAMPLES) % 10).float().mean().item()
        rows.append(row)
        print(way, k, *(f'{v:.0f}' for v in row['frechet_distance']), f"{row['class_accuracy']:.2f}", flush=True)
    return rows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--minutes', type=float, default=7.5)
    p.add_argument('--only', nargs='+', default=list(WAYS), choices=WAYS)
    p.add_argument('--out', type=Path, default=PACKAGE/'results'/'fast.json')
    args = p.parse_args()
    ldm, data = LatentDiffusion.from_pretrained('fashion'), fashion_mnist('train', full=True)
    result = read_json(args.out) if args.out.exists() else dict(rows=[], steps={})
    for way in args.only:
        path, done = RUNS/f'{way.replace(" ", "-")}.safetensors', [r['way'] for r in result['rows']]
        if way in done:
            continue
        net = FlowMap(ldm.ema) if way == 'flow map' else copy.deepcopy(ldm.ema)
        if path.exists():
            tensors, about = load_tensors(path)
            net.load_state_dict(tensors)
        else:
            trained, about = WAYS[way](ldm, data, 60*args.minutes)
            net.load_state_dict(trained.state_dict())
            save_tensors(path, net.state_dict(), about)
        result['rows'] += measured(way, ldm, net.eval())
        result['steps'][way] = about
        result |= dict(command='python bench/fast.py', card=dict(
            samples=SAMPLES, seeds=SEEDS, network='EfficientNet-Lite0, 64 x 64', directions=128,
            reference='fashion test, 2000 images', device='cpu', threads=torch.get_num_threads(), torch=torch.__version__))
        write_json(args.out, result)


if __name__ == '__main__':
    main()
