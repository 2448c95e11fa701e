"""What bfloat16 is worth on this CPU: python bench/precision.py   (twenty minutes on 2 cores)

  steps         milliseconds of a training step in float32 and under `torch.autocast` to bfloat16, in turns; the median of the rounds
  autoencoders  autoencoders of faces at 64 px, 120 seconds each, one seed, each in a process of its own; 500 reconstructions of
                renders that none has seen, judged by EfficientNet-Lite0 as in own.py, also with a fifth of noise in the latents
Whether the processor has AMX is in /proc/cpuinfo (amx_bf16). Writes bench/precision.json and the tables of bench/RECIPE.md.
"""
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault('TQDM_DISABLE', '1')
import torch

from ldm_nb.autoencoder import psnr
from ldm_nb.core import generator, write_json
from ldm_nb.denoiser import UNet, diffusion_loss
from ldm_nb.training import Recipe, train_autoencoder
from ldm_nb.vae import VAE, vae_loss
from ldm_nb.world import faces
from own import Judge
from tables import put_table

HERE, SECONDS, ROUNDS = Path(__file__).parent, 120, 9
SWITCH = 'ACCELERATE_MIXED_PRECISION'
TRIALS = [
    dict(precision='no', ae_width=64),
    dict(precision='bf16', ae_width=64),
    dict(precision='no', ae_width=128),
    dict(precision='bf16', ae_width=128),
    dict(precision='bf16', ae_width=128, kl_weight=3e-4),
    dict(precision='bf16', ae_width=128, latent_channels=8, kl_weight=1e-3),
    dict(precision='bf16', f=8, latent_channels=16, ae_width=256, kl_weight=3e-4, resize=True),
]


def milliseconds(net, loss):
    "Of a step, {precision: median}: forward and backward pass, and the optimizer."
    net, taken = net.to(memory_format=torch.channels_last), {}
    opt = torch.optim.AdamW(net.parameters(), fused=True)
    for _ in range(ROUNDS):
        for name in ('float32', 'bfloat16'):
            began = time.perf_counter()
            with torch.autocast('cpu', torch.bfloat16, enabled=name == 'bfloat16'):
                value = loss(net)
            value.backward()
            opt.step()
            opt.zero_grad()
            taken.setdefault(name, []).append(1000*(time.perf_counter() - began))
    return {name: round(statistics.median(each), 1) for name, each in taken.items()}


def steps():
    "Autoencoders in batches of 16 images of 64 px, denoisers in batches of 32 latents of 16 x 16."
    x, z, found = faces(16, 64).images, torch.randn(32, 4, 16, 16), {}
    for width in (64, 128, 192):
        found[f'autoencoder {width}'] = milliseconds(VAE(width=width, image_channels=3), lambda net: vae_loss(net, x)[0])
    for widths in ((48, 96, 128), (64, 128, 192), (96, 192, 256)):
        found[f'denoiser {", ".join(map(str, widths))}'] = milliseconds(UNet(4, widths), lambda net: diffusion_loss(net, z))
    return found


def trial(setting):
    "Run as a process of its own, since Accelerate fixes its precision once."
    recipe = Recipe(ae_batch=16, ae_lr=2e-3, **{k: v for k, v in setting.items() if k != 'precision'})
    run = train_autoencoder(faces(20_000, 64).levels, recipe, seconds=SECONDS)
    vae, x = run['model'].eval(), faces(500, 64, seed=330).images
    quality = Judge(faces(3000, 64, seed=300))
    with torch.no_grad():
        z = torch.cat([vae.encode(part) for part in x.split(100)])
        noise = .2*z.std((0, 2, 3), keepdim=True)*torch.randn(z.shape, generator=generator(0, 'noise'))
        clean, noisy = (torch.cat([vae.decode(part) for part in v.split(100)]).clamp(-1, 1) for v in (z, z + noise))
    return dict(setting=setting, steps=len(run['losses']), psnr=psnr(clean, x).mean().item(), distance=quality(clean)['frechet_distance'],
                distance_noisy=quality(noisy)['frechet_distance'], floor=quality(x)['frechet_distance'])


def table(rows):
    "The two tables of bench/RECIPE.md."
    lines = ['| network | float32, ms a step | bfloat16 | times as fast |', '|---|---|---|---|']
    for name, ms in rows['steps'].items():
        lines.append(f'| {name} | {ms["float32"]:.0f} | {ms["bfloat16"]:.0f} | {ms["float32"]/ms["bfloat16"]:.1f} |')
    lines += ['', '| precision | f, channels, width | KL weight | steps | dB | distance | with noise |', '|---|---|---|---|---|---|---|']
    for row in rows['autoencoders']:
        r = Recipe(**{k: v for k, v in row['setting'].items() if k != 'precision'})
        precision = dict(no='float32', bf16='bfloat16')[row['setting']['precision']]
        lines.append(f'| {precision} | {r.f}, {r.latent_channels}, {r.ae_width}{", resize" if r.resize else ""} | {r.kl_weight:g} | {row["steps"]:,} | '
                     f'{row["psnr"]:.1f} | {row["distance"]:.0f} | {row["distance_noisy"]:.0f} |')
    floors = {round(row['floor']) for row in rows['autoencoders']}
    return '\n'.join(lines + ['', f'(The 500 renders themselves have {floors.pop()}.)'])


def main():
    if sys.argv[1:]:
        return print(json.dumps(trial(json.loads(sys.argv[1]))))
    rows = dict(steps=steps(), amx='amx_bf16' in Path('/proc/cpuinfo').read_text(), torch=torch.__version__, seconds=SECONDS, autoencoders=[])
    print(rows['steps'], flush=True)
    for setting in TRIALS:
        p = subprocess.run([sys.executable, __file__, json.dumps(setting)], env=os.environ | {SWITCH: setting['precision']}, stdout=subprocess.PIPE, text=True, check=True)
        rows['autoencoders'].append(json.loads(p.stdout.splitlines()[-1]))
        print(rows['autoencoders'][-1], flush=True)
    write_json(HERE/'precision.json', rows)
    put_table('precision', table(rows))


if __name__ == '__main__':
    main()
