"The loop: kills, full disks, damaged and foreign files, NaN, Ctrl-C, several processes. Real processes where it matters."
from contextlib import suppress
import os, random, signal, subprocess, sys, threading, time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ldm_nb.core import InputError, fingerprint, load_tensors, read_json, save_tensors
from ldm_nb.data import fashion_mnist
import ldm_nb.loop as l
import ldm_nb.runs as r
import ldm_nb.training as t
from ldm_nb.loop import Checkpoints, fit
from ldm_nb.runs import cached_latents, train_latent_diffusion

ENV = os.environ | dict(IN_TEST='1', TQDM_DISABLE='1', OMP_NUM_THREADS='1')
SERVER = '''
import os, sys
import accelerate, torch._dynamo                                        # what a first step would import: kills shall hit the run, not the imports
import ldm_nb.runs as r
import ldm_nb.training as t
from ldm_nb.data import fashion_mnist
fit, data, steps = t.fit, fashion_mnist()[:200], int(sys.argv[1])
t.fit = lambda *a, **k: fit(*a, **k | dict(save_every=0))                    # a checkpoint after every step
for folder in sys.stdin:                                              # a process of its own for each line
    if not (pid := os.fork()):
        r.train_latent_diffusion(data, folder.strip(), steps=steps, size='smoke', seed=5, resume=True); os._exit(0)
    print(pid, flush=True); print(os.waitpid(pid, 0)[1], flush=True)
'''


class Server:
    "Starts training processes without paying for the import of torch each time."
    def __init__(self, steps): self.p = subprocess.Popen([sys.executable, '-c', SERVER, str(steps)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV)
    def start(self, folder): print(folder, file=self.p.stdin, flush=True); return int(self.p.stdout.readline())
    def status(self): return int(self.p.stdout.readline())
    def close(self): self.p.communicate()


def files(folder): return {p.name: load_tensors(p)[0] for p in (folder/'model').glob('*.safetensors')}


def test_twenty_kills_at_random_moments(tmp_path):
    steps, rng, took = 70, random.Random(0), []
    server = Server(steps)
    for name in ('whole', 'warm'): # the first run of a server is slower than the others
        began = time.perf_counter()
        server.start(tmp_path/name)
        assert server.status() == 0
        took.append(time.perf_counter() - began)
    deaths = []
    def places(): # where the kills fell; on a busy machine more of them fall on one
        return {str(d) for d in deaths}
    while len(deaths) < 20 or len(places()) <= 10 and len(deaths) < 40:
        pid = server.start(tmp_path/'killed')
        time.sleep(rng.uniform(.02, .085)*min(took))
        with suppress(ProcessLookupError): # has ended: the status says it
            os.kill(pid, signal.SIGKILL)
        assert server.status() == signal.SIGKILL, 'the run ended before it was killed: give it more steps'
        done = {}
        for stage in ('autoencoder', 'denoiser'):
            box = Checkpoints(tmp_path/'killed'/'checkpoints'/stage)
            if box.files():
                assert len(box.files()) <= 3                          # two, and for a moment the next one
                done[stage] = len(box.load()[0]['history.lr'])        # whole: load warns of a damaged one, and warnings are errors here
        if deaths: assert all(done[k] >= v for k, v in deaths[-1].items())
        deaths.append(done)
    assert len(places()) > 10 and 'denoiser' in deaths[-1], deaths
    server.start(tmp_path/'killed'); assert server.status() == 0; server.close()
    whole, killed = files(tmp_path/'whole'), files(tmp_path/'killed')
    assert set(whole) == {f'{part}.safetensors' for part in ('autoencoder', 'denoiser', 'ema', 'guide', 'seen')} == set(killed)
    for name in whole:
        for k in whole[name]: assert whole[name][k].equal(killed[name][k]), (name, k)
    assert not list((tmp_path/'killed').rglob('*.damaged')) and not list((tmp_path/'killed').rglob('.*.part'))


pytestmark = pytest.mark.filterwarnings('error::UserWarning')


def regression(n=64):
    rng = torch.Generator().manual_seed(0); x = torch.randn(n, 5, generator=rng); y = x @ torch.randn(5, 1, generator=rng)
    torch.manual_seed(0); net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    return net, lambda m, i: (m(x[i]) - y[i]).square().mean(), x


def train(checkpoint=None, num_steps=12, net=None, loss=None, **kwargs):
    made, made_loss, _ = regression()
    return fit(net or made, loss or made_loss, 64, 16, 1e-2, num_steps, checkpoint=checkpoint, save_every=0, ema_decay=.9, **kwargs)


def stop_at(step, error=RuntimeError):
    def callback(k, *_):
        if k == step: raise error
    return callback


def test_a_truncated_checkpoint_is_set_aside(tmp_path):
    whole = train()
    with pytest.raises(RuntimeError): train(tmp_path, callback=stop_at(7))
    newest = Checkpoints(tmp_path).files()[-1]; newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match='truncated.*the checkpoint before it is used'): run = train(tmp_path)
    assert fingerprint(run['model']) == fingerprint(whole['model']) and fingerprint(run['ema']) == fingerprint(whole['ema'])
    assert len(list(tmp_path.glob('*.damaged'))) == 1


def test_a_flipped_bit_is_noticed(tmp_path):
    with pytest.raises(RuntimeError): train(tmp_path, callback=stop_at(7))
    newest = Checkpoints(tmp_path).files()[-1]; data = bytearray(newest.read_bytes()); data[-9] ^= 1; newest.write_bytes(data)
    with pytest.warns(UserWarning, match='changed after it was saved'): train(tmp_path)


def test_foreign_files_are_refused_and_stay(tmp_path):
    with pytest.raises(RuntimeError): train(tmp_path, callback=stop_at(7))
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r'belongs to another run \(seed 0 then, 1 now\)'): train(tmp_path, seed=1)
    torch.manual_seed(0)
    with pytest.raises(InputError, match='does not fit this model'): train(tmp_path, net=nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 1)))
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
    save_tensors(tmp_path/'step-00000099.safetensors', dict(a=torch.zeros(2)))
    with pytest.warns(UserWarning, match='not written by a training run'): assert len(train(tmp_path)['losses']) == 12


def test_no_checkpoint_left(tmp_path):
    with pytest.raises(RuntimeError): train(tmp_path, callback=stop_at(4))
    for f in Checkpoints(tmp_path).files(): f.write_bytes(b'')
    with pytest.warns(UserWarning), pytest.raises(InputError, match='no checkpoint is left'): train(tmp_path)


FULL_DISK = '''
import resource, sys
sys.path.insert(0, {tests!r}); from test_loop import *
def callback(step, *_):
    if step == 5: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))   # from now on the kernel refuses to write more than 1,000 bytes
train({folder!r}, callback=callback)
'''


@pytest.mark.skipif(sys.platform == 'win32', reason='needs setrlimit')
def test_full_disk(tmp_path):
    code = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV)
    assert p.returncode and 'OSError' in p.stderr and 'the checkpoint of step 5 cannot be written' in p.stderr and 'step-00000004.safetensors is complete' in p.stderr, p.stderr
    assert [f.name for f in sorted(tmp_path.iterdir())] == ['step-00000003.safetensors', 'step-00000004.safetensors']
    assert fingerprint(train(tmp_path)['model']) == fingerprint(train()['model'])


def test_nan_names_the_examples(tmp_path):
    net, loss, x = regression(); x[[11, 40]] = float('nan')
    with pytest.raises(InputError, match=r'stopped at step \d+, loss nan.*examples \[(11|40|11, 40|40, 11)\] alone'): train(tmp_path, loss=loss, net=net)
    assert all(p.isfinite().all() for p in net.parameters())
    good = Checkpoints(tmp_path).load()
    assert good is None or all(v.isfinite().all() for v in good[0].values())


def test_nan_for_other_reasons():
    net, loss, x = regression()
    with pytest.raises(InputError, match='every example'): fit(net, lambda m, i: loss(m, i)*float('inf'), 64, num_steps=3)
    net = nn.Linear(1, 1, bias=False); nn.init.zeros_(net.weight)
    with pytest.raises(InputError, match='root'): fit(net, lambda m, i: m(torch.ones(1, 1)).abs().sqrt().sum(), 64, num_steps=3)
    net = nn.Linear(1, 1); hot = lambda m, i: m(torch.ones(1, 1)).square().sum().exp()
    with pytest.raises(InputError, match='lower the learning rate'): fit(net, hot, 64, num_steps=400, lr=-5e-2)


def test_wrong_budgets_and_batches():
    with pytest.raises(InputError, match='num_steps is None and seconds None'): fit(*regression()[:2], 64)
    with pytest.raises(InputError, match='16 cannot be cut into 3 equal parts'): train(accumulate=3)


def test_accumulation_is_the_same_sum():
    one, four = train(), train(accumulate=4)
    np.testing.assert_allclose(one['losses'], four['losses'], rtol=1e-5)
    assert len(four['history']['lr']) == len(four['history']['grad_norm']) == len(four['history']['seconds']) == 12 and (np.diff(four['history']['seconds']) > 0).all()


def test_a_rate_for_each_child():
    net, loss, _ = regression(); before = fingerprint(net[0])
    fit(net, loss, 64, 16, {'2': 1e-2}, num_steps=3)
    assert fingerprint(net[0]) == before


def test_ctrl_c_in_a_script_saves_and_stops(tmp_path):
    press = lambda k, *_: k == 5 and os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt): train(tmp_path, callback=press)
    assert Checkpoints(tmp_path).files()[-1].name == 'step-00000006.safetensors'        # the step after which it was noticed, complete
    assert fingerprint(train(tmp_path)['model']) == fingerprint(train()['model'])


def test_the_stop_button_of_a_real_notebook_kernel(tmp_path):
    from jupyter_client.manager import start_new_kernel
    manager, client = start_new_kernel(kernel_name='python3', env=ENV, cwd=str(tmp_path))
    def run(code):
        answer = []
        client.execute_interactive(code, timeout=90, output_hook=lambda m: answer.append(m['content'].get('text') or m['content'].get('traceback') or ''))
        return ''.join(map(str, answer))
    try:
        assert not run(f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_loop import *; train()')
        threading.Timer(2, manager.interrupt_kernel).start()
        run('run = train("run", num_steps=10**6)')
        steps = int(run('print(len(run["losses"]) if run["interrupted"] else -1)'))
        assert steps > 0 and int(run('print(len(Checkpoints("run").load()[0]["history.lr"]))')) == steps
    finally: client.stop_channels(); manager.shutdown_kernel(now=True)


GRADIENTS = '''
import sys; sys.path.insert(0, {tests!r}); from test_loop import *
run = train({folder!r}, accumulate=2)
together = l.get_accelerator(); together.wait_for_everyone(); together.end_training()
'''


def launch(*args, **kwargs): return subprocess.run([sys.executable, '-m', *args], capture_output=True, text=True, env=ENV | dict(OMP_NUM_THREADS='1'), timeout=300, **kwargs)


def test_two_processes_have_the_gradients_of_one(tmp_path):
    (tmp_path/'script.py').write_text(GRADIENTS.format(tests=str(Path(__file__).parent), folder=str(tmp_path/'two')))
    p = launch('torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(tmp_path/'script.py')); assert p.returncode == 0, p.stderr
    two, _ = Checkpoints(tmp_path/'two').load()
    one, _ = (train(tmp_path/'one'), Checkpoints(tmp_path/'one').load()[0])[::-1]
    for k in one:                                                                        # weights, EMA, moments of the gradients
        if not k.startswith('history'): torch.testing.assert_close(two[k], one[k], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(two['history.grad_norm'], one['history.grad_norm'], rtol=1e-5, atol=1e-7)


PRECISION = '''
import torch
from torch import nn
from ldm_nb.loop import fit
seen = []
def loss(model, i):
    out = model(torch.randn(len(i), 8))
    seen.append(str(out.dtype))
    return out.float().square().mean()
run = fit(nn.Linear(8, 8), loss, 16, 4, 1e-3, num_steps=2)
print(sorted(set(seen)), sorted({str(p.dtype) for p in run['model'].parameters()}))
'''


@pytest.mark.parametrize('asked, computes', [(None, 'float32'), ('bf16', 'bfloat16')])
def test_the_cpu_computes_in_the_precision_that_accelerate_is_told(asked, computes):
    env = {k: v for k, v in ENV.items() if k != 'ACCELERATE_MIXED_PRECISION'} | dict(LDM_DEVICE='cpu')
    env |= dict(ACCELERATE_MIXED_PRECISION=asked) if asked else {}
    p = subprocess.run([sys.executable, '-c', PRECISION], capture_output=True, text=True, env=env, timeout=300)
    assert p.stdout.strip() == f"['torch.{computes}'] ['torch.float32']", p.stderr


def test_torchrun_two_processes_on_the_cpu(tmp_path):
    common = ['-m', 'ldm_nb.commands', '--steps', '5', '--size', 'smoke']
    two = launch('torch.distributed.run', '--standalone', '--nproc_per_node', '2', *common, '--out', str(tmp_path/'two'))
    assert two.returncode == 0, two.stderr
    one = launch(*common[1:], '--accumulate', '2', '--out', str(tmp_path/'one'))
    assert one.returncode == 0, one.stderr
    assert [read_json(tmp_path/k/'model'/'card.json')['processes'] for k in ('one', 'two')] == [1, 2]
    for name, tensors in files(tmp_path/'one').items():  # with all their noise: bit for bit
        for k, v in files(tmp_path/'two')[name].items(): assert v.equal(tensors[k]), (name, k)


def test_accelerate_launch_on_the_cpu_is_not_one_process_in_silence(tmp_path):
    "Without MPI it starts one process whatever number it is given: that is an error, and says what to type."
    common = ['-m', 'ldm_nb.commands', '--steps', '1', '--size', 'smoke', '--out', str(tmp_path/'run')]
    two = launch('accelerate.commands.launch', '--cpu', '--num_processes', '2', *common)
    assert two.returncode and 'torchrun --nproc_per_node' in two.stderr and not (tmp_path/'run').exists(), two.stderr
    one = launch('accelerate.commands.launch', '--cpu', '--num_processes', '1', *common)
    assert one.returncode == 0 and (tmp_path/'run'/'model'/'config.json').exists(), one.stderr


def test_the_old_way_to_train_says_what_to_type():
    old = launch('ldm_nb.training', '--steps', '1')
    assert old.returncode and 'python -m ldm_nb.commands' in old.stderr and len(old.stderr.strip().splitlines()) == 1, old.stderr


def test_untrained_children_do_not_count():
    net, loss, _ = regression(); plain = fit(net, loss, 64, 16, {'2': 1e-2}, num_steps=6)
    net, loss, _ = regression(); net[0].requires_grad_(False); frozen = fit(net, loss, 64, 16, {'2': 1e-2}, num_steps=6)
    assert fingerprint(plain['model']) == fingerprint(frozen['model']) and (plain['history']['grad_norm'] == frozen['history']['grad_norm']).all()


def test_figures_beside_the_loss_do_not_train():
    net, loss, _ = regression(); one = fit(net, loss, 64, num_steps=5)
    net, loss, _ = regression(); two = fit(net, lambda m, i: (loss(m, i), (m[0].weight*0).sqrt().sum(), 3.), 64, num_steps=5)
    assert fingerprint(one['model']) == fingerprint(two['model']) and (two['history']['figures'][:, 2] == 3).all()


def test_after_a_nan_the_same_model_can_be_trained():
    net, loss, x = regression()
    with pytest.raises(InputError): fit(net, lambda m, i: loss(m, i)*float('nan'), 64, num_steps=3)
    assert fingerprint(fit(net, loss, 64, num_steps=3)['model']) == fingerprint(fit(*regression()[:2], 64, num_steps=3)['model'])


@pytest.mark.parametrize('method', ['naive', 'aligned'])
def test_nan_in_joint_fine_tuning_is_explained(method, monkeypatch):
    import ldm_nb.joint as joint
    from ldm_nb.autoencoder import Classifier
    data, floats = fashion_mnist()[:8], joint.as_floats
    def spoiled(images): # levels cannot hold a NaN: it comes on the way to the network
        fourth = (images[..., 2:-2, 2:-2] == data.levels[3]).all((1, 2, 3))
        return floats(images).masked_fill(fourth.view(-1, 1, 1, 1), float('nan'))
    monkeypatch.setattr(joint, 'as_floats', spoiled)
    shipped, cut = t.LatentDiffusion.from_pretrained('fashion'), joint.CutFeatures(Classifier())
    with pytest.raises(InputError, match=r'examples \[3\] alone'): joint.finetune(shipped, data, method, cut, batch_size=8, num_steps=2)


def test_ctrl_c_in_stage_two_of_a_notebook_gives_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr(l, 'IN_NOTEBOOK', True); fit_ = t.fit
    press = lambda k, *_: k == 3 and os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(t, 'fit', lambda *a, stage, **k: fit_(*a, stage=stage, **k | dict(callback=press if stage == 'denoiser' else None)))
    ldm, losses = train_latent_diffusion(fashion_mnist()[:100], tmp_path/'r', steps=6, size='smoke')
    assert ldm.card['interrupted'] and len(losses['denoiser']) == 4 and t.LatentDiffusion.from_pretrained(tmp_path/'r').sample(2, steps=2).shape == (2, 1, 28, 28)
    monkeypatch.setattr(t, 'fit', fit_)
    again, losses = train_latent_diffusion(fashion_mnist()[:100], tmp_path/'r', steps=6, size='smoke', resume=True)
    assert not again.card['interrupted'] and len(losses['denoiser']) == 6


def test_a_damaged_cache_of_latents_is_made_again(tmp_path):
    from ldm_nb.vae import VAE
    vae, x = VAE(width=8, encoder_depth=0, decoder_depth=0).requires_grad_(False), torch.randn(5, 1, 8, 8)
    first = cached_latents(vae, x, tmp_path/'z.safetensors')
    (tmp_path/'z.safetensors').write_bytes((tmp_path/'z.safetensors').read_bytes()[:-5])
    assert cached_latents(vae, x, tmp_path/'z.safetensors').equal(first) and cached_latents(vae, x, tmp_path/'z.safetensors').equal(first)
    assert not cached_latents(vae, x + 1, tmp_path/'z.safetensors').equal(first)
