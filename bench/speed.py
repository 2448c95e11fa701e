"""How fast the denoiser is, against diffusers' network of equal shape and size: python bench/speed.py   (three minutes on 2 cores)

Both see latents of 4 x 8 x 8 in batches of 64 and have about 1.3 million parameters. Measured in turns, and the median of the rounds counts:
  network   forward and backward pass alone, both in the same memory layout
  step      a whole training step: ours as `fit` makes it, theirs as diffusers' own training script does (AdamW, clipping, EMAModel)
  sampling  network evaluations a second, batches of 250
  compile   forward and backward pass of ours with `torch.compile` beside the same without, and the seconds that the compiling takes
  bfloat16  the same under `torch.autocast` to bfloat16 beside float32 (the CPU says in /proc/cpuinfo whether it has it: avx512_bf16, amx_bf16)
And the import times of `ldm_nb`, and the peak memory of a training. The share of the machine's convolution speed is `bench/conv_peak.py`'s.
Writes bench/speed.json; needs the extra [dev].
"""
import json, os, resource, statistics, subprocess, sys, time
from pathlib import Path

os.environ |= dict(TQDM_DISABLE='1', TORCHINDUCTOR_FORCE_DISABLE_CACHES='1') # compiled anew, so that its seconds count
import torch
from torch import nn
import torch.nn.functional as F

from ldm_nb.core import default_device, write_json
from ldm_nb.denoiser import UNet, diffusion_loss
from ldm_nb.loop import fit

HERE, DEVICE, ROUNDS, STEPS = Path(__file__).parent, default_device(), 10, 6
parameters = lambda net: sum(p.numel() for p in net.parameters())


class Theirs(nn.Module):
    "diffusers' UNet2DModel with our signature: attention at the lower resolution only, like ours."
    def __init__(self):
        super().__init__()
        from diffusers import UNet2DModel
        self.net = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(64, 80), norm_num_groups=8, num_class_embeds=11,
                               down_block_types=('DownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'UpBlock2D'))
    def forward(self, x, t, labels): return self.net(x, t*1000, labels).sample


def sync(): torch.cuda.synchronize() if DEVICE.type == 'cuda' else None
def timed(f, times): sync(); began = time.perf_counter(); [f() for _ in range(times)]; sync(); return (time.perf_counter() - began)/times


def main():
    torch.manual_seed(0); z, labels = torch.randn(512, 4, 8, 8), torch.randint(0, 10, (512,))
    nets = dict(ours=UNet(num_classes=10), theirs=Theirs()); sizes = {k: parameters(n) for k, n in nets.items()}
    assert abs(sizes['theirs']/sizes['ours'] - 1) < .05, sizes
    x, t, y = z[:64].to(DEVICE).contiguous(memory_format=torch.channels_last), torch.rand(64, device=DEVICE), labels[:64].to(DEVICE)
    loss = lambda net, i: diffusion_loss(net, z[i].to(DEVICE), labels[i].to(DEVICE))

    def network(net, bf16=False):
        net.to(DEVICE, memory_format=torch.channels_last).train()
        def both():
            net.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16): loss = net(x, t, y).float().square().mean()
            loss.backward()
        return lambda: timed(both, STEPS)
    def sampling(net):
        big, times, classes = z[:250].to(DEVICE).contiguous(memory_format=torch.channels_last), torch.rand(250, device=DEVICE), labels[:250].to(DEVICE)
        def go():
            net.eval()
            with torch.no_grad(): s = timed(lambda: net(big, times, classes), 3)
            net.train(); return s/250
        return go
    def our_step(): # the first step of a run is not counted
        seconds = fit(nets['ours'], loss, len(z), 64, 1e-3, STEPS + 1, ema_decay=.99)['history']['seconds']
        return (seconds[-1] - seconds[0])/STEPS
    def their_step():
        from diffusers.training_utils import EMAModel
        from diffusers.optimization import get_cosine_schedule_with_warmup
        net = nets['theirs'].train(); opt = torch.optim.AdamW(net.parameters(), lr=1e-3); schedule = get_cosine_schedule_with_warmup(opt, 2, STEPS + 1)
        average = EMAModel(net.parameters(), decay=.9999, use_ema_warmup=True, inv_gamma=1., power=3/4)
        def one(): loss(net, torch.randint(0, 512, (64,))).backward(); nn.utils.clip_grad_norm_(net.parameters(), 1.).item(); opt.step(); schedule.step(); opt.zero_grad(); average.step(net.parameters())
        one(); return timed(one, STEPS)

    kinds = dict(network={k: network(n) for k, n in nets.items()}, step=dict(ours=our_step, theirs=their_step), sampling={k: sampling(n) for k, n in nets.items()})
    began = time.perf_counter(); compiled = network(torch.compile(UNet(num_classes=10))); compiled(); spent = time.perf_counter() - began
    special = dict(compile=('compiled_ms', compiled), bfloat16=('bfloat16_ms', network(UNet(num_classes=10), bf16=True)))
    kinds |= {kind: dict(ours=f, theirs=kinds['network']['ours']) for kind, (_, f) in special.items()} # "theirs" is our own network, plain
    result = dict(parameters=sizes)
    for kind, pair in kinds.items():
        rounds = [{k: f() for k, f in pair.items()} for _ in range(ROUNDS + 1)][1:]
        ratios = [r['theirs']/r['ours'] for r in rounds]
        result[kind] = {f'{k}_ms': 1000*statistics.median(r[k] for r in rounds) for k in pair} | dict(times_faster=statistics.median(ratios), lowest=min(ratios), highest=max(ratios))
        if kind in special: r = result[kind]; r[special[kind][0]], r['plain_ms'] = r.pop('ours_ms'), r.pop('theirs_ms')
        if kind == 'compile':
            r |= dict(seconds_to_compile=spent, steps_until_it_has_paid=1000*spent/(r['plain_ms'] - r['compiled_ms']) if r['plain_ms'] > r['compiled_ms'] else None)
        print(kind, json.dumps(result[kind]), flush=True)
    imports = subprocess.run([sys.executable, HERE/'imports.py'], capture_output=True, text=True, check=True).stdout.strip()
    result |= dict(imports=imports, peak_memory_GB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024/1e9, device=str(DEVICE), threads=torch.get_num_threads(), torch=torch.__version__)
    write_json(HERE/'speed.json', result); print(imports)


if __name__ == '__main__': main()
