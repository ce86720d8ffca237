#!/usr/bin/env python3
"""Measures pipemlp beside its peers and writes what it found, with pictures.

Every contestant is a program that trains 20 steps from the same weights on the same rows and says
what the loss was; then it trains on for as long as it is told, when it is told. So all of them wait
side by side and are timed in turns, in rounds, and a machine that becomes slower meanwhile is
unfair to nobody. Whoever is missing, fails, hangs or computes something else is named and has no
time.

A run of everything writes RESULTS.md and pictures beside this file; --quick, or a run of less,
writes them into build/bench. All figures go to build/bench/results.json as well."""
import argparse
import datetime
import glob
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True  # nothing but sources beside the sources
import report  # noqa: E402
from contest import (BUILD, CORES, HERE, PAIR, ROOT, Contestant, Failure, Meter, Program,  # noqa: E402
                     Variant, fields, kill_all, say, speed_of, start_all, take_turns,
                     times_faster)

SECTIONS = ('train', 'gemm', 'profile', 'scaling')
BATCHES = (32, 128, 512, 1024)
ROWS = 20480       # of the training images: those of the check with the largest batch
TOLERANCE = 1e-3   # of the loss, relative to pipemlp's serial run
DATA = os.path.join(ROOT, 'build', 'data')
WEIGHTS = os.path.join(BUILD, 'weights.bin')
LOGS = os.path.join(BUILD, 'log')

SCHEDULES = {PAIR: 'eager 1F1B', '1f1b': '1F1B', 'gpipe': 'GPipe',
             'interleaved': 'interleaved 1F1B', 'looped-bfs': 'looped BFS', 'zb-h1': 'ZB-H1',
             'zb-h2': 'ZB-H2', 'zb-v': 'ZB-V', 'dualpipe-v': 'DualPipeV', 'auto': 'auto',
             'pipedream': 'PipeDream', 'pipedream-2bw': 'PipeDream-2BW'}
ASYNCHRONOUS = ('pipedream', 'pipedream-2bw')
NEWER = os.path.join(ROOT, 'build', 'torch', 'bin', 'python')  # of tests/torch_setup.sh


# --- programs -------------------------------------------------------------------------------------

def built(name):
    return os.path.join(BUILD, name)


unbuilt = {}  # program: why it does not compile


def build():
    """Compiles what is older than its sources."""
    cc, cxx = os.environ.get('CC', 'cc'), os.environ.get('CXX', 'c++')
    c = [cc, '-O3', '-std=gnu11', '-I.']
    libm = ['-pthread', '-lm']
    recipes = {
        'peer_pipemlp': (c, 'peer_pipemlp.c', libm),
        'peer_data_parallel': (c, 'peer_data_parallel.c', libm),
        'peer_fann': (c, 'peer_fann.c', ['-lfann', '-lm']),
        'peer_dlib': ([cxx, '-O3', '-march=native', '-std=c++14'], 'peer_dlib.cpp',
                      ['-ldlib', '-lopenblas', '-lblas', '-llapack', '-pthread']),
        'gemm': (c, 'gemm.c', ['-ldl', *libm]),
        'profile': (c, 'profile.c', ['-ldl', *libm]),
    }
    headers = [os.path.join(ROOT, 'pipemlp.h'), *glob.glob(os.path.join(HERE, '*.h'))]
    for name, (compiler, source, libraries) in recipes.items():
        source, program = os.path.join(HERE, source), built(name)
        if not os.path.exists(source):
            unbuilt[name] = 'missing: ' + os.path.basename(source)
            continue
        newest = max(os.path.getmtime(path) for path in [source, *headers])
        if os.path.exists(program) and os.path.getmtime(program) > newest:
            continue
        if not shutil.which(compiler[0]):
            unbuilt[name] = 'missing: ' + compiler[0]
            continue
        say(f'  compiling {name}')
        found = subprocess.run([*compiler, source, '-o', program, *libraries], cwd=ROOT,
                               stderr=subprocess.PIPE, text=True)
        if found.returncode:
            unbuilt[name] = complaint_of(found.stderr)
            if os.path.exists(program):
                os.remove(program)
    build_libxsmm(cc)


def complaint_of(errors):
    missing = re.search(r'([\w./]+): No such file|cannot find (-l\w+)', errors)
    if missing:
        return f'missing: {missing[1] or missing[2]}'
    line = next((line for line in errors.splitlines() if 'error' in line), '?')
    return 'does not compile: ' + line.split('error: ')[-1].strip()[:140]


def build_libxsmm(cc):
    """Where libxsmm comes as an archive, gemm wants it as a library beside itself."""
    target = built('libxsmm.so')
    for archive in glob.glob('/usr/lib/libxsmm.a') + glob.glob('/usr/lib/*/libxsmm.a'):
        blas = archive.replace('libxsmm.a', 'libxsmmnoblas.a')
        if os.path.exists(target) or not os.path.exists(blas):
            return
        subprocess.run([cc, '-shared', '-o', target, '-Wl,--whole-archive', archive,
                        '-Wl,--no-whole-archive', blas, '-lpthread', '-ldl', '-lm'],
                       stderr=subprocess.DEVNULL)


# --- contestants ----------------------------------------------------------------------------------

def python_for(module):
    """This Python, unless only the system's has the module."""
    system = '/usr/bin/python3'
    if importlib.util.find_spec(module) or not os.path.exists(system):
        return sys.executable
    return system


def command(program, batch, threads, *options, python=None):
    start = [built(program)]
    if program.endswith('.py'):
        module = {'peer_numpy.py': 'numpy', 'peer_sklearn.py': 'sklearn'}.get(program, 'torch')
        start = [python or python_for(module), os.path.join(HERE, program)]
    return [*start, '--data', DATA, '--batch', str(batch), '--threads', str(threads),
            '--rows', str(ROWS), *(str(o) for o in options)]


def environment(threads, blas):
    """Threads of the peers' libraries, and the BLAS kernels found best."""
    names = ('OMP', 'OPENBLAS', 'MKL', 'BLIS')
    return {**{name + '_NUM_THREADS': str(threads) for name in names}, **blas,
            'PYTHONDONTWRITEBYTECODE': None, 'PYTHONPYCACHEPREFIX': os.path.join(BUILD, 'python'),
            'TMPDIR': os.path.join(BUILD, 'tmp')}


def microbatches(batch, schedule):
    """What is tried: more for the one that all others are held against."""
    return [m for m in (4, 8, 16, 32) if m <= 8 or batch // m >= (16 if schedule == PAIR else 32)]


def pipeline(key, title, batch, threads=2, group='pipeline', **options):
    """With the number of micro-batches that turns out best."""
    options = [word for name, value in options.items() for word in ('--' + name, value)]
    variants = [Variant(f'm = {m}', command('peer_pipemlp', batch, threads, '--weights', WEIGHTS,
                                            '--microbatches', m, *options), {})
                for m in microbatches(batch, key) if m >= threads]
    return Contestant(key, title, group, threads, variants)


def blas_libraries():
    """The folders of OpenBLAS for threads of both kinds, where Debian has them."""
    found = {}
    for name in ('pthread', 'openmp'):
        for library in glob.glob(f'/usr/lib/*/openblas-{name}/libblas.so.3'):
            found[name] = os.path.dirname(library)
    return found


def peer(key, title, program, batch, threads, blas, kept):
    """With more threads than one, over OpenBLAS of both kinds, whichever is faster; `kept` knows
    what was."""
    run = command(program, batch, threads, '--weights', WEIGHTS)
    env = environment(threads, blas)
    variants = [Variant('', run, env)]
    if threads > 1:
        made = [Variant(name, run, {**env, 'LD_LIBRARY_PATH': folder})
                for name, folder in blas_libraries().items()]
        variants = [v for v in made if v.label == kept.get(key)] or made or variants
    return Contestant(key, title, 'peer', threads, variants)


def newer_peer(batch, threads):
    run = command('peer_torch.py', batch, threads, '--weights', WEIGHTS, python=NEWER)
    return Contestant(f'newer-torch-{threads}', 'PyTorch', 'peer', threads,
                      [Variant('', run, environment(threads, {}))])


def torch_pipe(key, batch, blas, python=None):
    return Contestant(key, 'PyTorch, a pipeline of two processes over gloo', 'peer', 2, [
        Variant(f'm = {m}', command('peer_torch_pipe.py', batch, 1, '--weights', WEIGHTS,
                                    '--microbatches', m, python=python), environment(1, blas))
        for m in ((4, 8) if batch >= 512 else (2, 4))])


def peers(batch, blas, kept):
    made = []
    for name, title, program in (('torch', 'PyTorch', 'peer_torch.py'),
                                 ('numpy', 'NumPy', 'peer_numpy.py'),
                                 ('dlib', 'dlib', 'peer_dlib'),
                                 ('sklearn', 'scikit-learn', 'peer_sklearn.py')):
        made += [peer(f'{name}-{threads}', title, program, batch, threads, blas, kept)
                 for threads in (1, 2)]
        if name == 'torch' and os.path.exists(NEWER):
            made += [newer_peer(batch, 1), newer_peer(batch, 2)]
    made.append(torch_pipe('torch-pipe', batch, blas))
    if os.path.exists(NEWER):
        made.append(torch_pipe('newer-torch-pipe', batch, {}, NEWER))
    return made + [Contestant('fann', 'FANN', 'peer', 1, [
        Variant('', command('peer_fann', batch, 1, '--weights', WEIGHTS), environment(1, {}))])]


def contestants(batch, blas, kept):
    own = ['--weights', WEIGHTS]
    made = [Contestant('serial', 'pipemlp, serial', 'serial', 1,
                       [Variant('', command('peer_pipemlp', batch, 1, *own), {})])]
    for name, title in SCHEDULES.items():
        group = 'asynchronous' if name in ASYNCHRONOUS else 'pipeline'
        made.append(pipeline(name, title, batch, group=group, schedule=name))
    made += [
        pipeline('layers', '1F1B, cut between whole layers', batch, schedule='1f1b', cut='layers'),
        pipeline('4-workers', f'1F1B, 4 workers on {CORES} core{"s" * (CORES > 1)}', batch, 4,
                 schedule='1f1b'),
        Contestant('data-parallel', 'data parallel with pipemlp\'s kernels', 'own', 2, [
            Variant('', command('peer_data_parallel', batch, 2, *own), {})]),
        Contestant('data-parallel-outputs', 'the same, each gradient computed whole', 'own', 2, [
            Variant(label, command('peer_data_parallel', batch, 2, *own, '--split', split), {})
            for split, label in (('gradients', 'first layer forward by rows'),
                                 ('outputs', 'first layer forward by outputs'))]),
        Contestant('two-serials', 'two serial trainings at once', 'machine', 2, [
            Variant('', command('peer_pipemlp', batch, 1, *own, '--copies', 2), {})]),
    ]
    return made + peers(batch, blas, kept)


def wanted(made, only):
    """`serial` and the pair always take part: the others are held against them."""
    return [c for c in made if not only or c.key in only or c.key in ('serial', PAIR)]


# --- the answers ----------------------------------------------------------------------------------

def verdict_on(serial):
    """A function that says what is wrong with a variant's loss or weights."""
    loss, word = float(serial.ready['loss']), serial.ready.get('weights')

    def verdict(variant):
        ready = variant.ready
        if variant.asynchronous or ready.get('check') == 'other':
            return '' if float(ready['loss']) < 2.3 else f'wrong: its loss is {ready["loss"]}'
        if not abs(float(ready['loss']) - loss) <= TOLERANCE * abs(loss):
            return f'wrong: its loss is {ready["loss"]}, not {loss:.6f}'
        if variant.bits and ready.get('weights') != word:
            return f'wrong: its weights are {ready.get("weights")}, not {word}'
        return ''

    return verdict


def check(made):
    serial = made[0]
    if not serial.chosen:
        sys.exit(f'bench.py: pipemlp itself: {serial.failure}')
    for contestant in made:
        program = os.path.basename(contestant.variants[0].command[0])
        for variant in contestant.variants:
            variant.failure = unbuilt.get(program, variant.failure)
            variant.asynchronous = contestant.group == 'asynchronous'
            variant.bits = contestant.group in ('serial', 'pipeline', 'machine', 'scaling')
        contestant.judge(verdict_on(serial))
        for variant in contestant.variants:
            if variant.failure:
                label = f', {variant.label}' if variant.label else ''
                say(f'  {contestant.title}{label}: {variant.failure}')


def identical(contestant, serial):
    if 'weights' not in contestant.ready:
        return ''
    return 'yes' if contestant.ready['weights'] == serial.ready['weights'] else 'no'


def record(contestant, serial, pair, batch):
    """What the report and results.json need."""
    c = contestant
    known = {'key': c.key, 'title': c.title, 'group': c.group, 'threads': c.threads,
             'batch': batch, 'failure': c.failure,
             'dropped': [[v.label, v.failure] for v in c.variants if v.failure]}
    if not c.chosen or not c.chosen.turns:
        return {**known, 'failure': c.failure or 'not measured'}
    return {**known, **c.more, 'variant': c.chosen.label, 'tried': c.tried, 'ready': c.ready,
            'identical': identical(c, serial), 'speed': speed_of(c),
            'against_serial': times_faster(c, serial),
            'against_pair': times_faster(c, pair) if pair.chosen else None,
            'disturbed': c.chosen.disturbed, 'turns': c.chosen.turns}


def ask_ceilings(made):
    """The middle one of three, since costs are measured for it."""
    for contestant in made:
        if not contestant.chosen or contestant.threads == 1 or 'peer_pipemlp' not in \
                contestant.chosen.command[0] or contestant.group == 'machine':
            continue
        try:
            found = [fields(contestant.chosen.program.ask('ceiling', 60)) for _ in range(3)]
        except Failure as failure:
            say(f'  {contestant.title}: no ceiling: {failure}')
            continue
        found.sort(key=lambda f: float(f.get('measured', 0)))
        contestant.more['ceiling'] = found[1]


# --- sections -------------------------------------------------------------------------------------

def find_blas(o):
    """The kernels with which OpenBLAS is fastest and right: releases older than a processor fall
    back on those of processors of long ago. Returns {variable: value} and what was tried."""
    names = ('OPENBLAS_CORETYPE', 'OPENBLAS_L2_SIZE')
    as_it_is = {name: os.environ.get(name) for name in names}
    tries = [{}] + ([dict.fromkeys(names)] if any(as_it_is.values()) else [])
    with open('/proc/cpuinfo') as info:
        flags = set(next((line for line in info if line.startswith('flags')), '').split())
    cores = ['SkylakeX', 'SapphireRapids'] if 'avx512f' in flags else []
    cores += ['Haswell', 'Zen'] if 'avx2' in flags else []
    for core in cores:
        for l2 in dict.fromkeys((None, as_it_is['OPENBLAS_L2_SIZE'])):
            tries.append({'OPENBLAS_CORETYPE': core, 'OPENBLAS_L2_SIZE': l2})
    run = command('peer_numpy.py', 128, 1, '--weights', WEIGHTS)
    variants = [Variant(' '.join(f'{k}={v}' for k, v in t.items() if v) or
                        ('as it is' if not t else 'without variables'), run,
                        {**environment(1, {}), **t}) for t in tries]
    serial = Contestant('serial', 'pipemlp, serial', 'serial', 1,
                        [Variant('', command('peer_pipemlp', 128, 1, '--weights', WEIGHTS), {})])
    probe = Contestant('blas', 'OpenBLAS', 'peer', 1, variants)
    say('finding the fastest kernels of OpenBLAS')
    start_all([serial, probe], LOGS)
    check([serial, probe])
    probe.choose(rounds=3 if o.quick else 7, seconds=0.08)
    serial.stop()
    probe.stop()
    tried = [{'label': v.label, 'version': v.ready.get('version', ''), 'failure': v.failure,
              'speed': probe.tried.get(v.label)} for v in variants]
    if not probe.chosen:
        return {}, tried
    enough = 0.97 * probe.tried[probe.chosen.label] if probe.tried else 0  # the first of equals
    chosen = next(i for i, t in enumerate(tried) if not t['failure'] and
                  (t['speed'] or enough) >= enough)
    say(f'  {tried[chosen]["label"]}: {tried[chosen]["version"]}')
    return tries[chosen], tried


def train(o, results):
    blas, tried = find_blas(o)
    kept, found = {}, []
    for batch in o.batch:
        say(f'training with B = {batch}: starting')
        made = wanted(contestants(batch, blas, kept), o.only)
        start_all(made, os.path.join(LOGS, f'train-{batch}'))
        check(made)
        serial, pair = made[0], made[1]
        say(f'training with B = {batch}: choosing micro-batches and libraries')
        for contestant in made:
            contestant.choose(9 if contestant is pair else 3)
        take_turns(made, [serial, pair], o.rounds, o.seconds, o.budget, f'B = {batch}')
        say(f'training with B = {batch}: ceilings')
        ask_ceilings(made)
        found += [record(c, serial, pair, batch) for c in made]
        kept.update({c.key: c.chosen.label for c in made if c.chosen and c.group == 'peer'})
        for contestant in made:
            contestant.stop()
    results['train'] = {'blas': blas, 'blas_tried': tried, 'contestants': found,
                        'rounds': o.rounds, 'seconds': o.seconds}


def lines_of(program, variables=()):
    """The machine-readable lines of a program: [{'line': 'gemm', 'batch': '128', ...}]."""
    say(f'running {program}')
    if not os.path.exists(built(program)):
        return {'failure': unbuilt.get(program, 'not built'), 'lines': []}
    ran = Program([built(program)], {'OMP_NUM_THREADS': '1', **dict(variables)},
                  os.path.join(LOGS, program + '.txt'))
    lines, complaint = ran.everything(120)
    found = []
    for line in lines:
        try:
            words = fields(line)
        except ValueError:
            continue
        if words:
            found.append({'line': line.split()[0], **words})
    return {'failure': complaint or '', 'lines': found}


def gemm(o, results):
    blas = results['train']['blas'] if 'train' in results else find_blas(o)[0]
    results['gemm'] = lines_of('gemm', blas)


def profile(o, results):
    results['profile'] = lines_of('profile')


def scaled(kind, x, title, batch, workers, **options):
    words = [word for name, value in options.items() for word in ('--' + name, value)]
    if 'layers' not in options:
        words += ['--weights', WEIGHTS]
    if workers > 1:
        words += ['--schedule', PAIR]
    run = command('peer_pipemlp', batch, workers, *words)
    return Contestant(f'{kind}-{x}-{workers}', title, 'scaling', workers, [Variant('', run, {})],
                      kind=kind, x=x)


def scaling_groups():
    """[(contestants, their serial reference)]"""
    groups = []
    for kind, values, layers in (
            ('width', (128, 256, 512, 1024, 2048), lambda n: ','.join([str(n)] * 3)),
            ('depth', (2, 4, 8, 16), lambda n: ','.join(['256'] * n))):
        for n in values:
            groups.append([scaled(kind, n, f'{kind} {n}, {w} worker{"s" * (w > 1)}', 128, w,
                                  layers=layers(n)) for w in (1, 2)])
    deep = ','.join(['256'] * 8)
    groups.append([scaled('workers', p, f'{p} worker{"s" * (p > 1)}', 128, p, layers=deep,
                          **({'microbatches': 8} if p > 1 else {})) for p in (1, 2, 3, 4)])
    for batch in (128, 1024):
        serial = scaled(f'microbatches-{batch}', 0, f'B = {batch}, serial', batch, 1)
        groups.append([serial] + [
            scaled(f'microbatches-{batch}', m, f'B = {batch}, m = {m}', batch, 2, microbatches=m)
            for m in (1, 2, 4, 8, 16, 32)])
    return groups


def scaling(o, results):
    found = []
    for group in scaling_groups():
        name = group[0].more['kind'] + (f' {group[0].more["x"]}' if len(group) == 2 else '')
        start_all(group, os.path.join(LOGS, 'scaling'))
        serial = group[0]
        if not serial.chosen:
            say(f'  {serial.title}: {serial.failure}')
            continue
        check(group)
        take_turns(group, [serial], o.rounds, o.seconds, 12, f'scaling, {name}')
        ask_ceilings(group)
        for contestant in group:
            made = record(contestant, serial, serial, 0)
            made['batch'] = int(contestant.variants[0].command[
                contestant.variants[0].command.index('--batch') + 1])
            found.append(made)
            contestant.stop()
    results['scaling'] = {'contestants': found}


# --- the machine ----------------------------------------------------------------------------------

def first_line(*command_line):
    try:
        return subprocess.run(command_line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True, timeout=20).stdout.splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return '?'


def file_text(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ''


def machine():
    info = file_text('/proc/cpuinfo')
    model = next((line.split(':', 1)[1].strip() for line in info.splitlines()
                  if line.startswith('model name')), platform.machine())
    flags = next((line.split() for line in info.splitlines() if line.startswith('flags')), [])
    caches = []
    for folder in sorted(glob.glob('/sys/devices/system/cpu/cpu0/cache/index*')):
        kind = {'Data': 'd', 'Instruction': 'i'}.get(file_text(folder + '/type'), '')
        caches.append(f'L{file_text(folder + "/level")}{kind} {file_text(folder + "/size")}')
    memory = next((int(line.split()[1]) for line in file_text('/proc/meminfo').splitlines()
                   if line.startswith('MemTotal')), 0)
    system = dict(line.split('=', 1) for line in file_text('/etc/os-release').splitlines()
                  if '=' in line)
    return {
        'processor': model, 'cores': CORES, 'caches': ', '.join(caches),
        'instructions': ' '.join(f for f in ('sse2', 'avx2', 'fma', 'avx512f') if f in flags),
        'virtual': 'hypervisor' in flags, 'memory': f'{memory / 2 ** 20:.0f} GiB',
        'system': system.get('PRETTY_NAME', platform.system()).strip('"'),
        'kernel': platform.release(), 'libc': ' '.join(platform.libc_ver()),
        'compiler': first_line(os.environ.get('CC', 'cc'), '--version'),
        'python': platform.python_version(),
    }


# --- main -----------------------------------------------------------------------------------------

def one_of(values):
    def parse(text):
        words = text.split(',')
        for word in words:
            if word not in values:
                raise argparse.ArgumentTypeError(f'"{word}" is none of {", ".join(values)}')
        return words
    return parse


def numbers(most):
    def parse(text):
        try:
            found = [int(word) for word in text.split(',')]
        except ValueError:
            found = [0]
        if min(found) < 1 or max(found) > most:
            raise argparse.ArgumentTypeError(f'"{text}": wants numbers from 1 to {most}')
        return found
    return parse


def read_options():
    keys = [c.key for c in contestants(128, {}, {})]
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='fewer and shorter turns, B = 128: '
                        'does it work, not how fast is it')
    parser.add_argument('--only', type=one_of(keys), default=[], metavar='NAME[,NAME]',
                        help=f'these contestants (and serial and {PAIR})')
    parser.add_argument('--section', type=one_of(SECTIONS), default=list(SECTIONS),
                        metavar='NAME[,NAME]', help='of ' + ', '.join(SECTIONS))
    parser.add_argument('--batch', type=numbers(1024), metavar='B[,B]',
                        help='default 32,128,512,1024')
    parser.add_argument('--rounds', type=int, help='default 9')
    parser.add_argument('--output', metavar='DIR', help='where RESULTS.md and the pictures go')
    parser.add_argument('--build', action='store_true', help='compile, and no more')
    parser.add_argument('--report', action='store_true',
                        help='write the report of build/bench/results.json anew')
    parser.add_argument('--list', action='store_true', help='name the contestants')
    o = parser.parse_args()
    if o.rounds is not None and o.rounds < 1:
        parser.error('--rounds: at least 1')
    o.everything = not (o.quick or o.only or o.batch) and set(o.section) == set(SECTIONS)
    o.batch = o.batch or ([128] if o.quick else list(BATCHES))
    o.rounds = o.rounds or (3 if o.quick else 9)
    o.seconds, o.budget = (0.06, 60) if o.quick else (0.15, 65)
    return o


def with_matplotlib():
    """Begins again with the system's Python if that one has what this one lacks."""
    system = python_for('matplotlib')
    if system != sys.executable and not os.environ.get('PIPEMLP_BENCH_AGAIN'):
        os.environ['PIPEMLP_BENCH_AGAIN'] = '1'
        os.execv(system, [system, *sys.argv])


def stop(number, _frame):
    kill_all()
    say(f'{os.path.basename(sys.argv[0])}: stopped by signal {number}')
    os._exit(128 + number)


def stop_on_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d %H:%M UTC')


def prepare():
    os.makedirs(BUILD, exist_ok=True)
    shutil.rmtree(os.path.join(BUILD, 'tmp'), ignore_errors=True)
    os.makedirs(os.path.join(BUILD, 'tmp'))
    os.makedirs(LOGS, exist_ok=True)
    build()
    if subprocess.run(['bash', os.path.join(ROOT, 'tests', 'data.sh'), DATA]).returncode:
        sys.exit('bench.py: no training images')
    if 'peer_pipemlp' in unbuilt:
        sys.exit(f'bench.py: peer_pipemlp: {unbuilt["peer_pipemlp"]}')
    subprocess.run([built('peer_pipemlp'), '--write-weights', WEIGHTS], check=True)
    for name, complaint in unbuilt.items():
        say(f'  {name}: {complaint}')


def measure(o):
    meter, begin = Meter(), time.monotonic()
    results = {'begun': now(), 'machine': machine(), 'load_before': os.getloadavg(),
               'quick': o.quick, 'everything': o.everything, 'options': sys.argv[1:]}
    for section in o.section:
        {'train': train, 'gemm': gemm, 'profile': profile, 'scaling': scaling}[section](o, results)
    results['load_after'] = os.getloadavg()
    results['minutes'] = (time.monotonic() - begin) / 60
    results['stolen'] = meter.read()['stolen']
    with open(os.path.join(BUILD, 'results.json'), 'w') as file:
        json.dump(results, file, indent=1)
    return results


def main():
    o = read_options()
    if o.list:
        for c in contestants(128, {}, {}):
            print(f'{c.key:24}{c.title}{"" if c.threads == 1 else f", {c.threads} threads"}')
        return
    with_matplotlib()
    stop_on_signals()
    try:
        if o.report:
            with open(os.path.join(BUILD, 'results.json')) as file:
                results = json.load(file)
        else:
            prepare()
            if o.build:
                return
            results = measure(o)
    finally:
        kill_all()
    folder = o.output or (HERE if results['everything'] else BUILD)
    os.makedirs(folder, exist_ok=True)
    say('wrote ' + report.write(results, folder))


if __name__ == '__main__':
    main()
