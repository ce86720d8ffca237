#!/usr/bin/env python3
"""Measures the CUDA back end beside PyTorch on this machine's GPU and writes what it found.

Works as bench.py does: every contestant trains 20 steps from the same weights on the same rows and
says what the loss was; whoever is off is named and has no time. Then all wait side by side and are
timed in turns. What the card can do at best, gpu_floors.cu finds. The programs come from `make
bench-cuda`; PyTorch with CUDA from PMLP_TORCH_PYTHON, build/torch, or this Python.

A run of everything writes RESULTS-gpu.md beside this file; --quick, or a run of less, writes it
into build/bench. Without a GPU it says so in one sentence and does nothing."""
import argparse
import json
import os
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # nothing but sources beside the sources
import contest  # noqa: E402
import report_gpu  # noqa: E402
from bench import (DATA, ROOT, file_text, first_line, machine, now, numbers,  # noqa: E402
                   one_of, stop_on_signals)
from contest import (BUILD, HERE, Contestant, Failure, Program, Variant, fields,  # noqa: E402
                     kill_all, quartiles, say, start_all, take_turns)

SECTIONS = ('steps', 'schedules', 'accuracy')
MATHS = ('fp32', 'tf32', 'bf16')
BATCHES = (64, 128, 1024, 8192)
SCHEDULES = ('sequential', 'gpipe', '1f1b', 'eager-1f1b', 'interleaved', 'looped-bfs', 'zb-h1',
             'zb-h2', 'zb-v', 'dualpipe-v', 'pipedream', 'pipedream-2bw')
PARTS = 4  # micro-batches of a pipeline
# of the loss after 20 steps, relative to the CPU back end's
TOLERANCE = {'fp32': 1e-3, 'tf32': 5e-3, 'bf16': 3e-2}
WEIGHTS = os.path.join(BUILD, 'weights-gpu.bin')
LOGS = os.path.join(BUILD, 'log', 'gpu')
FOUND = os.path.join(BUILD, 'results-gpu.json')

contest.PATIENCE = 300  # torch.compile takes its time


# --- contestants ----------------------------------------------------------------------------------

def program(o, name):
    return os.path.join(o.programs, name)


def peer_command(o, batch, *options):
    return [program(o, 'peer_pipemlp'), '--data', o.data, '--weights', WEIGHTS, '--batch',
            str(batch), '--rows', str(o.rows), *(str(option) for option in options)]


def own(o, key, title, batch, math, *options):
    run = peer_command(o, batch, '--backend', 'cuda', '--math', math, *options)
    return Contestant(key, title, 'own', 1, [Variant('', run, {})], math=math, batch=batch)


def torch_python():
    """A Python whose PyTorch sees the GPU; else one that has a PyTorch, which will say why not."""
    tried = [os.environ.get('PMLP_TORCH_PYTHON'), os.path.join(ROOT, 'build/torch/bin/python'),
             sys.executable, '/usr/bin/python3']
    second = sys.executable
    for python in tried:
        if not python or not os.path.exists(python):
            continue
        try:
            status = subprocess.run([python, '-W', 'ignore', '-c', 'import torch; '
                                     'raise SystemExit(3 * (not torch.cuda.is_available()))'],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                    timeout=120).returncode
        except (OSError, subprocess.TimeoutExpired):
            continue
        if status == 0:
            return python
        if status == 3:
            second = python
    return second


def torch_peer(o, key, title, batch, math, mode, read=0):
    run = [o.torch, os.path.join(HERE, 'peer_torch_cuda.py'), '--data', o.data,
           '--weights', WEIGHTS, '--batch', str(batch), '--rows', str(o.rows), '--math', math,
           '--mode', mode, '--read', str(read)]
    env = {'PYTHONDONTWRITEBYTECODE': None, 'PYTHONPYCACHEPREFIX': os.path.join(BUILD, 'python'),
           'TORCHINDUCTOR_CACHE_DIR': os.path.join(BUILD, 'inductor')}
    return Contestant(key, title, 'peer', 1, [Variant('', run, env)], math=math, batch=batch)


def contestants(o, batch, math):
    return [
        own(o, 'fused', 'pipemlp', batch, math),
        own(o, 'run-on', 'pipemlp, no wait between steps', batch, math, '--schedule', 'pipedream'),
        own(o, 'no-graphs', 'pipemlp, kernels issued one by one', batch, math, '--graphs', 0),
        own(o, 'plain', 'pipemlp, cuBLAS', batch, math, '--gemm', 'plain'),
        own(o, 'teaching', 'pipemlp, the teaching product', batch, math, '--gemm', 'teaching'),
        torch_peer(o, 'eager', 'PyTorch, eager', batch, math, 'eager'),
        torch_peer(o, 'compile', 'PyTorch, torch.compile', batch, math, 'compile'),
        torch_peer(o, 'graph', 'PyTorch, the step as one CUDA graph', batch, math, 'graph'),
        torch_peer(o, 'graph-read', 'the same, each loss read back', batch, math, 'graph', 1),
    ]


# --- the answers ----------------------------------------------------------------------------------

def cpu_loss(o, batch):
    """Of the same steps by the CPU back end."""
    run = Program([*peer_command(o, batch), '--wait', '1'], {},
                  os.path.join(LOGS, f'cpu-{batch}.txt'))
    try:
        run.answer(contest.PATIENCE)
        return float(fields(run.ask('go', contest.PATIENCE))['loss'])
    finally:
        run.kill()


def judge(made, loss, witness=None, same=()):
    """Losses against the CPU's; contestants in `same` must have the witness's weights."""
    def verdict_for(contestant):
        tolerance = TOLERANCE[contestant.more['math']]

        def verdict(variant):
            found = float(variant.ready['loss'])
            if contestant.group == 'asynchronous':  # other weights, and yet it must learn
                return '' if found < 2.3 else f'wrong: its loss is {found:.6f}'
            contestant.more['off'] = abs(found - loss) / abs(loss)
            if not contestant.more['off'] <= tolerance:
                return f'wrong: its loss is {found:.6f}, the CPU\'s {loss:.6f}'
            word = witness.ready.get('weights') if witness else None
            if contestant.key in same and variant.ready.get('weights') != word:
                return f'wrong: its weights are {variant.ready.get("weights")}, not {word}'
            return ''
        return verdict

    for contestant in made:
        contestant.judge(verdict_for(contestant))
        if contestant.failure:
            say(f'  {contestant.title}: {contestant.failure}')


def record(contestant):
    c = contestant
    known = {'key': c.key, 'title': c.title, 'group': c.group, **c.more, 'failure': c.failure}
    if not c.chosen or not c.chosen.turns:
        return {**known, 'failure': c.failure or 'not measured'}
    steps = [1e6 * c.more['batch'] / speed for _, speed in c.chosen.turns]
    return {**known, 'us': quartiles(steps), 'ready': c.ready, 'disturbed': c.chosen.disturbed}


# --- sections -------------------------------------------------------------------------------------

def steps(o, results):
    found = []
    for batch in o.batch:
        loss = cpu_loss(o, batch)
        for math in MATHS:
            say(f'B = {batch}, {math}: starting')
            made = contestants(o, batch, math)
            start_all(made, os.path.join(LOGS, f'{batch}-{math}'))
            judge(made, loss, made[0], ('run-on', 'no-graphs'))
            take_turns(made, [made[0]], o.rounds, o.seconds, float('inf'), f'B = {batch}, {math}')
            found += [record(c) for c in made]
            for contestant in made:
                contestant.stop()
    results['steps'] = found


def schedules(o, results):
    """Two workers that share the GPU, whole layers, by every schedule."""
    batch, math = o.batch[-1] if 1024 not in o.batch else 1024, 'fp32'
    say(f'schedules: starting, B = {batch}')
    made = [own(o, 'whole', 'one worker, whole batches', batch, math),
            own(o, 'parts', f'one worker, {PARTS} micro-batches', batch, math, '--microbatches',
                PARTS)]
    for name in SCHEDULES:
        contestant = own(o, name, name, batch, math, '--threads', 2, '--schedule', name,
                         '--microbatches', PARTS)
        contestant.group = 'asynchronous' if name.startswith('pipedream') else 'pipeline'
        made.append(contestant)
    start_all(made, os.path.join(LOGS, 'schedules'))
    judge(made, cpu_loss(o, batch), made[1], SCHEDULES)
    take_turns(made, [made[0]], o.rounds, o.seconds, float('inf'), 'schedules')
    results['schedules'] = [record(c) for c in made]
    for contestant in made:
        contestant.stop()


def trained(o, name, *options):
    run = [program(o, 'train') if options else o.cpu, '--data', o.data, '--epochs', str(o.epochs),
           '--quiet', *options]
    if o.quick:
        run += ['--limit', '2560']
    say(f'accuracy: {name}')
    done = subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode:
        return {'name': name, 'failure': (done.stderr.strip() or '?').splitlines()[-1]}
    return {'name': name, 'failure': '', **fields(done.stdout.splitlines()[-1])}


def accuracy(o, results):
    """Twice on the GPU: the same bits, or it is said."""
    found = [trained(o, 'cpu')]
    for math in MATHS:
        first, again = (trained(o, math, '--backend', 'cuda', '--math', math) for _ in range(2))
        if not first['failure']:
            first['again'] = again.get('weights') == first['weights']
        found.append(first)
    results['accuracy'] = found


# --- the card -------------------------------------------------------------------------------------

def floors(o):
    """What gpu_floors found; None without a GPU."""
    done = subprocess.run([program(o, 'gpu_floors'), str(o.rounds)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode == 3:
        print(f'bench-cuda: nothing is measured: {done.stderr.strip()}')
        return None
    if done.returncode:
        sys.exit(f'bench_gpu.py: {done.stderr.strip() or "gpu_floors failed"}')
    lines = [(line.split()[0], fields(line)) for line in done.stdout.splitlines()]
    found = {}
    for _, line in (pair for pair in lines if pair[0] == 'floor'):
        found.setdefault(line['name'], {'unit': line['unit'], 'values': []})
        found[line['name']]['values'].append(float(line['value']))
    return {'gpu': next(line for kind, line in lines if kind == 'gpu'),
            'floors': {name: {'unit': f['unit'], **quartiles(f['values'])}
                       for name, f in found.items()}}


def driver():
    found = first_line('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
    module = re.search(r'Kernel Module.*?\s(\d+\.[\d.]+)', file_text('/proc/driver/nvidia/version'))
    return found if found != '?' else module[1] if module else '?'


# --- main -----------------------------------------------------------------------------------------

def read_options():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='B = 128, few and short turns: does '
                        'it work, not how fast is it')
    parser.add_argument('--section', type=one_of(SECTIONS), default=list(SECTIONS),
                        metavar='NAME[,NAME]', help='of ' + ', '.join(SECTIONS))
    parser.add_argument('--batch', type=numbers(16384), metavar='B[,B]',
                        help='default 64,128,1024,8192')
    parser.add_argument('--rounds', type=int, help='default 9')
    parser.add_argument('--programs', metavar='DIR', default=os.path.join(ROOT, 'build', 'cuda'),
                        help='where peer_pipemlp, train and gpu_floors are; default build/cuda')
    parser.add_argument('--data', metavar='DIR',
                        help='with files as MNIST has them; default build/data, fetched')
    parser.add_argument('--output', metavar='DIR', help='where RESULTS-gpu.md goes')
    parser.add_argument('--report', action='store_true',
                        help='write the report of build/bench/results-gpu.json anew')
    o = parser.parse_args()
    if o.rounds is not None and o.rounds < 1:
        parser.error('--rounds: at least 1')
    less = o.quick or o.batch or o.rounds or o.data or set(o.section) != set(SECTIONS)
    o.everything = not less
    o.batch = o.batch or ([128] if o.quick else list(BATCHES))
    o.rounds = o.rounds or (3 if o.quick else 9)
    o.seconds, o.epochs, o.rows = (0.05, 2, 2560) if o.quick else (0.2, 10, 0)
    o.cpu = os.path.join(ROOT, 'build', 'train')
    return o


def measure(o):
    begin, results = time.monotonic(), floors(o)
    if not results:
        return None
    if o.data:
        results['data'] = o.data
    else:
        o.data = DATA
        if subprocess.run(['bash', os.path.join(ROOT, 'tests', 'data.sh'), DATA]).returncode:
            sys.exit('bench_gpu.py: no training images')
    os.makedirs(LOGS, exist_ok=True)
    subprocess.run([program(o, 'peer_pipemlp'), '--write-weights', WEIGHTS], check=True)
    o.torch = torch_python()
    results.update(begun=now(), machine=machine(), driver=driver(), rounds=o.rounds,
                   seconds=o.seconds, epochs=o.epochs, parts=PARTS, tolerance=TOLERANCE,
                   everything=o.everything, options=sys.argv[1:])
    for section in o.section:
        {'steps': steps, 'schedules': schedules, 'accuracy': accuracy}[section](o, results)
    results['minutes'] = (time.monotonic() - begin) / 60
    with open(FOUND, 'w') as file:
        json.dump(results, file, indent=1)
    return results


def main():
    o = read_options()
    stop_on_signals()
    try:
        if o.report:
            with open(FOUND) as file:
                results = json.load(file)
        else:
            os.makedirs(BUILD, exist_ok=True)
            results = measure(o)
    except Failure as failure:
        sys.exit(f'bench_gpu.py: the CPU back end: {failure}')
    finally:
        kill_all()
    if results:
        folder = o.output or (HERE if results['everything'] else BUILD)
        os.makedirs(folder, exist_ok=True)
        say('wrote ' + report_gpu.write(results, folder))


if __name__ == '__main__':
    main()
