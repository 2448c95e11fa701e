"""The commands as a shell runs them, without the seconds that importing torch takes each time.

One process imports everything and then forks for each command, which runs the script that
pip installed, with its own arguments, folder, environment and streams.
"""
import atexit
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BIN = Path(sys.executable).parent
SERVER = '''
import json, os, runpy, signal, sys, traceback
import accelerate, matplotlib.pyplot, PIL.Image, torch._dynamo, tqdm
import ldm_nb.commands

def run(job):
    os.chdir(job['cwd'])
    os.environ.update(job['env'])
    signal.alarm(job['limit'])
    for number, name in enumerate(('stdout', 'stderr'), 1):
        os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT), number)
    sys.argv = job['args']
    try:
        runpy.run_path(job['args'][0], run_name='__main__')
        return 0
    except SystemExit as e:
        return e.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    if not (pid := os.fork()):
        code = run(json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
'''


@dataclass
class Ran:
    args: list
    returncode: int
    stdout: str
    stderr: str


@cache
def _server():
    process = subprocess.Popen([sys.executable, '-c', SERVER], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(process.communicate)
    return process


def shell(*args, cwd=None, env=(), limit=120): # seconds, after which it is killed
    "What `subprocess.run` would return for this command."
    args = [str(a) for a in args]
    with tempfile.TemporaryDirectory() as d:
        streams = {name: f'{d}/{name}' for name in ('stdout', 'stderr')}
        job = dict(args=[str(BIN/args[0]), *args[1:]], cwd=str(cwd or Path.cwd()), env=dict(env), limit=limit)
        print(json.dumps(job | streams), file=_server().stdin, flush=True)
        code = int(_server().stdout.readline())
        texts = {k: Path(v).read_text(encoding='utf-8', errors='replace') for k, v in streams.items()}
    return Ran(args, code, **texts)
