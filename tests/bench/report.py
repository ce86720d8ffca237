"""Writes RESULTS.md and its pictures from the figures that bench.py has measured."""
import os

import pictures
from contest import BLOCK, PAIR

NETWORK = '784-512-256-128-10'


# --- small things ---------------------------------------------------------------------------------

def number(value):
    """12,345 or 0.0123: three or four digits that count."""
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'


def speed(found):
    return f'{found["median"]:,.0f}'


def spread(found):
    return f'{found["low"]:,.0f} .. {found["high"]:,.0f}'


def times(ratio):
    """1.42 (1.38 .. 1.45)"""
    return '' if not ratio else f'{ratio["median"]:.2f} ({ratio["low"]:.2f} .. {ratio["high"]:.2f})'


def ceiling(contestant, kind):
    found = (contestant or {}).get('ceiling', {})
    return f'{float(found[kind]):.2f}' if kind in found else ''


def inverse(ratio):
    return ratio and {'median': 1 / ratio['median'], 'low': 1 / ratio['high'],
                      'high': 1 / ratio['low']}


def best(contestant):
    """The speed that a tenth of its turns surpassed: nearly nobody else on the machine."""
    speeds = sorted(s for _, s in contestant['turns'])
    return speeds[min(len(speeds) - 1, int(0.9 * len(speeds)))]


def table(head, rows, align=''):
    """Markdown; align has a letter per column, l or r."""
    marks = ['--:' if a == 'r' else '---' for a in align.ljust(len(head), 'l')]
    return '\n'.join('| ' + ' | '.join(str(cell) for cell in row) + ' |'
                     for row in [head, marks, *rows]) + '\n'


class Train:
    """The contestants by batch and key."""

    def __init__(self, results):
        self.all = results.get('train', {}).get('contestants', [])
        self.batches = sorted({c['batch'] for c in self.all})
        self.by = {(c['batch'], c['key']): c for c in self.all}

    def get(self, batch, key):
        """None unless it was measured."""
        found = self.by.get((batch, key))
        return found if found and not found['failure'] else None

    def at(self, batch):
        return [c for c in self.all if c['batch'] == batch]


# --- in short -------------------------------------------------------------------------------------

SHORT = (  # what of pipemlp, against whom, {} being its version, held against
    ('one worker, against {}, one thread', ('torch-1', 'newer-torch-1', 'numpy-1', 'dlib-1',
                                            'sklearn-1'), 'serial'),
    ('two workers, against {}, two threads', ('torch-2', 'newer-torch-2', 'numpy-2'),
     'pair'),
    ('two workers, against {}, a pipeline of two processes', ('torch-pipe', 'newer-torch-pipe'),
     'pair'),
    ('two workers, against two threads with the same kernels, data parallel', ('data-parallel',),
     'pair'),
    ('two workers, against the same with each gradient computed whole',
     ('data-parallel-outputs',), 'pair'),
)


def version(contestant):
    """PyTorch 2.15.0 of "PyTorch 2.15.0+cu132, MKL"."""
    return contestant['ready'].get('version', '?').split(',')[0].split('+')[0].replace('a0', '')


def in_short(train):
    rows = []
    for title, keys, reference in SHORT:
        for key in keys:
            found = [train.get(batch, key) for batch in train.batches]
            if any(found):
                name = version(next(c for c in found if c))
                rows.append([title.format(name)] + [
                    times(inverse(c['against_' + reference])) if c else '' for c in found])
    own = [train.get(batch, PAIR) for batch in train.batches]
    rows.append(['micro-batches of the two workers, the fastest number'] +
                [c['ready']['microbatches'] if c else '' for c in own])
    rows.append(['**two workers (eager 1F1B), against one**'] +
                [f'**{times(c["against_serial"])}**' if c else '' for c in own])
    rows.append(['the same with plain 1F1B'] +
                [times(c['against_serial']) if c else ''
                 for c in (train.get(batch, '1f1b') for batch in train.batches)])
    rows.append(['the ceiling of that pipeline, with its own costs measured'] +
                [ceiling(c, 'measured') for c in own])
    both = [train.get(batch, 'two-serials') for batch in train.batches]
    if any(both):
        rows.append(['two trainings at once that share nothing, against one: what the cores give'] +
                    [times(c['against_serial']) if c else '' for c in both])
    rows.append(['all synchronous pipelines have the bits of serial training'] +
                [same_bits(train.at(batch)) for batch in train.batches])
    head = ['how many times as fast as'] + [f'B = {batch}' for batch in train.batches]
    return table(head, rows, 'l' + 'r' * len(train.batches))


def same_bits(contestants):
    found = [c for c in contestants if c['group'] == 'pipeline' and not c['failure']]
    wrong = [f'{c["title"]}, {label}' for c in contestants if c['group'] == 'pipeline'
             for label, failure in c['dropped'] if failure.startswith('wrong')]
    if wrong:
        return 'no: ' + '; '.join(wrong)
    return f'yes, all {len(found)}' if found else ''


# --- training -------------------------------------------------------------------------------------

def who(contestant):
    variant = contestant.get('variant', '')
    known = {'pthread': 'OpenBLAS with pthreads', 'openmp': 'OpenBLAS with OpenMP'}
    title = contestant['title']
    if contestant['group'] == 'peer':
        title = ','.join([version(contestant), *title.split(',')[1:]])
    return title + (f', {known.get(variant, variant)}' if variant else '')


def answer(contestant, serial):
    if contestant['identical'] == 'yes':
        return 'same bits'
    if contestant['ready'].get('check') == 'other':
        return 'another loss, which falls'
    if contestant['group'] == 'asynchronous':
        return 'asynchronous'
    loss = float(serial['ready']['loss'])
    off = abs(float(contestant['ready']['loss']) / loss - 1)
    return f'loss within {max(off, 1e-9):.0e}'


def training(train, batch):
    serial = train.get(batch, 'serial')
    if not serial:
        return ''
    pipelines, others = [], []
    for c in train.at(batch):
        if c['group'] in ('pipeline', 'asynchronous'):
            if c['failure']:
                pipelines.append([c['title'], '', c['failure']] + [''] * 6)
                continue
            pipelines.append([c['title'], c['ready']['microbatches'], speed(c['speed']),
                              spread(c['speed']), number(best(c)), times(c['against_serial']),
                              ceiling(c, 'counted'), ceiling(c, 'measured'), c['identical'] +
                              (', asynchronous' if c['group'] == 'asynchronous' else '')])
        elif c['failure']:
            others.append([c['title'], c['threads'], c['failure']] + [''] * 5)
        else:
            others.append([who(c), c['threads'], speed(c['speed']), spread(c['speed']),
                           number(best(c)),
                           '' if c is serial else times(inverse(c['against_serial'])),
                           times(inverse(c['against_pair'])), answer(c, serial)])
    text = f'### B = {batch}\n\n'
    text += table(['', 'threads', 'samples/s', 'quartiles', '90th percentile', 'serial / it',
                   'two workers / it', 'answer'], others, 'lrrrrrrl') + '\n'
    return text + table(['two workers', 'm', 'samples/s', 'quartiles', '90th percentile',
                         'speedup over serial', 'ceiling, counted', 'ceiling, measured',
                         'bits of serial'], pipelines, 'lrrrrrrrl')


def versions(results, train):
    seen, lines = {}, []
    for c in train.all:
        if not c['failure']:
            seen.setdefault(c['ready'].get('version', ''), c['title'].split(',')[0])
    for version in sorted(seen):
        lines.append(f'- {version}')
    tried = results['train']['blas_tried']
    made = ', '.join(f'{t["label"]} {t["speed"]:,.0f} ({t["version"].split(", ")[-1]})'
                     if t['speed'] else f'{t["label"]}: {t["failure"]}' for t in tried)
    chosen = ' '.join(f'{k}={v}' for k, v in results['train']['blas'].items() if v)
    lines.append(f'- kernels of OpenBLAS that were tried (samples/s of NumPy, B = 128): {made}. '
                 f'Used for all peers: {chosen or "what it chooses itself"}.')
    return '\n'.join(lines) + '\n'


# --- matrix products and profile ------------------------------------------------------------------

def of(results, section, line):
    return [f for f in results.get(section, {}).get('lines', []) if f['line'] == line]


def ordered(values):
    return list(dict.fromkeys(values))


def not_measured(section):
    return 'Not measured: ' + (section['failure'] or 'the program says nothing') + '\n'


def gemm(results):
    found = [f for f in of(results, 'gemm', 'gemm') if 'who' in f]
    batches, names = ordered(f['batch'] for f in found), ordered(f['who'] for f in found)
    by = {(f['batch'], f['who']): f for f in found}
    rows = []
    for name in names:
        cells = []
        for batch in batches:
            f = by.get((batch, name), {})
            ratio = f' ({float(f["ratio"]):.2f})' if 'ratio' in f else ''
            cells.append(f.get('gflops', f.get('check', '')) + ratio)
        version = next((f['version'] for f in found if f['who'] == name and 'version' in f), '')
        rows.append([f'{name} {version}', *cells])
    for f in of(results, 'gemm', 'missing'):
        rows.append([f'{f.get("who", "?")}: missing, {f.get("reason", "?")}'] + [''] * len(batches))
    if not rows:
        return not_measured(results['gemm'])
    text = table(['GFLOP/s (pipemlp / it)'] + [f'B = {b}' for b in batches], rows,
                 'l' + 'r' * len(batches))
    return text + gemm_operations(results)


def gemm_operations(results):
    found = of(results, 'gemm', 'gemm-op')
    if not found:
        return ''
    names = ordered(f['who'] for f in found)
    batch = found[0]['batch']
    by = {(f['op'], f['layer'], f['who']): f for f in found if f['batch'] == batch}
    rows = [[op.replace('_', ' '), int(layer) + 1] +
            [by.get((op, layer, name), {}).get('gflops', '') for name in names]
            for op, layer in ordered((f['op'], f['layer']) for f in found)]
    return (f'\nEach product by itself, GFLOP/s at B = {batch}:\n\n' +
            table(['', 'layer', *names], rows, 'lr' + 'r' * len(names)))


def profile(results):
    text = ''
    lines = of(results, 'profile', 'profile')
    for batch in ordered(f['batch'] for f in lines):
        here = [f for f in lines if f['batch'] == batch]
        rows = [[f['op'].replace('_', ' '), int(f['layer']) + 1 if 'layer' in f else '', f['us'],
                 f'{100 * float(f.get("share", 0)):.1f} %', f.get('floor_us', ''),
                 f.get('over', ''), bound(f)] for f in here if 'workers' not in f]
        text += f'\nOne worker, B = {batch}:\n\n'
        text += table(['', 'layer', 'µs', 'share', 'floor, µs', 'times the floor', 'bound by'],
                      rows, 'lrrrrrl')
        text += profile_workers([f for f in here if 'workers' in f], batch)
    if not text:
        return not_measured(results['profile'])
    return text + handoffs(of(results, 'profile', 'handoff'))


def handoffs(found):
    if not found:
        return ''
    rows = [[f'{f["workers"]} workers, B = {f["batch"]}, m = {f["microbatches"]}, while they train'
             if 'workers' in f else 'an edge by itself, its two ends doing nothing else',
             f['us'], f.get('f_us', '')] for f in found]
    return ('\nHand-offs, median, from the end of what produced a message to the begin of what '
            'waited for it:\n\n' + table(['', 'µs', 'F of a micro-batch, µs'], rows, 'lrr'))


def bound(f):
    if f.get('bound') == 'bytes':
        return f'bytes, {f["level"]}' if 'level' in f else 'bytes'
    return {'flops': 'arithmetic'}.get(f.get('bound'), f.get('bound', ''))


def profile_workers(found, batch):
    shares = [f for f in found if 'worker' in f]
    if not shares:
        return ''
    workers = ordered(f['worker'] for f in shares)
    by = {(f['worker'], f['op']): f for f in shares}
    rows = [[op.replace('_', ' ')] + [by[w, op]['us'] if (w, op) in by else '' for w in workers] +
            [f'{100 * float(by[w, op].get("share", 0)):.1f} %' if (w, op) in by else ''
             for w in workers] for op in ordered(f['op'] for f in shares)]
    m = shares[0].get('microbatches', '?')
    return (f'\n{len(workers)} workers, B = {batch}, m = {m}, one traced step:\n\n' +
            table([''] + [f'worker {w}, µs' for w in workers] +
                  [f'worker {w}, share' for w in workers], rows, 'l' + 'r' * 2 * len(workers)))


def speeds_of_the_machine(results):
    section = 'gemm' if of(results, 'gemm', 'peak') else 'profile'
    lines = [f'- multiply-adds of one core, {f["isa"]}: {f["gflops"]} GFLOP/s'
             for f in of(results, section, 'peak')]
    levels = {}
    for f in of(results, section, 'bandwidth'):
        levels.setdefault(f['level'], []).append(f'{f.get("op", "")} {f["gb_per_s"]} GB/s'.strip())
    lines += [f'- {level}: {", ".join(found)}' for level, found in levels.items()]
    return '\n'.join(lines) + ('\n' if lines else '')


# --- scaling --------------------------------------------------------------------------------------

def scaling(results):
    found = results['scaling']['contestants']
    text = ''
    for kind, title in (('width', 'Three hidden layers of this width, B = 128'),
                        ('depth', 'So many hidden layers of 256, B = 128'),
                        ('workers', 'Workers, eight hidden layers of 256, B = 128, m = 8')):
        here = [c for c in found if c.get('kind') == kind or c['key'].startswith(kind + '-')]
        if not here:
            continue
        rows = []
        for c in here:
            if c['failure']:
                rows.append([c['title'], c['failure']] + [''] * 5)
                continue
            step = 1000 * c['batch'] / c['speed']['median']
            rows.append([c['title'], f'{step:.3g}', speed(c['speed']), spread(c['speed']),
                         times(c['against_serial']) if c['threads'] > 1 else '',
                         *ceilings(c)])
        text += f'\n{title}:\n\n' + table(['', 'ms a step', 'samples/s', 'quartiles', 'speedup',
                                           'ceiling, counted', 'ceiling, measured'], rows,
                                          'lrrrrrr')
    for batch in (128, 1024):
        here = [c for c in found if c['key'].startswith(f'microbatches-{batch}-')
                and c['threads'] > 1]
        rows = [[c['x'], batch // c['x'], speed(c['speed']), spread(c['speed']),
                 times(c['against_serial']), *ceilings(c)] for c in here if not c['failure']]
        rows += [[c['title'], c['failure']] + [''] * 5 for c in here if c['failure']]
        if rows:
            text += (f'\nMicro-batches, two workers, {NETWORK}, B = {batch}:\n\n' +
                     table(['m', 'rows of each', 'samples/s', 'quartiles', 'speedup over serial',
                            'ceiling, counted', 'ceiling, measured'], rows, 'rrrrrrr'))
    return text


def ceilings(contestant):
    if contestant['threads'] == 1:
        return '', ''
    return ceiling(contestant, 'counted'), ceiling(contestant, 'measured')


# --- the page -------------------------------------------------------------------------------------

def disturbance(results, train):
    turns = sum(len(c['turns']) for c in train.all if not c['failure'])
    again = sum(c['disturbed'] for c in train.all if not c['failure'])
    return turns, again


def the_machine(results):
    m = results['machine']
    rows = [['processor', m['processor'] + (' (virtual machine)' if m['virtual'] else '')],
            ['cores', m['cores']], ['caches of a core', m['caches']],
            ['instructions', m['instructions']], ['memory', m['memory']],
            ['system', f'{m["system"]}, Linux {m["kernel"]}, {m["libc"]}'],
            ['compiler', m['compiler']], ['Python', m['python']],
            ['load before and after', f'{results["load_before"][0]:.2f}, '
                                      f'{results["load_after"][0]:.2f}'],
            ['taken by other machines of the host', f'{100 * results["stolen"]:.1f} %'],
            ['begun, and how long it took', f'{results["begun"]}, {results["minutes"]:.1f} min']]
    return table(['', ''], rows)


AGAIN = '''## Run it again

    make bench                                    # all of it, a quarter of an hour at most
    python3 tests/bench/bench.py --quick          # does it work? into build/bench
    python3 tests/bench/bench.py --help           # sections, batches, contestants, rounds

`tests/bench/setup.sh` installs the peers from Debian's packages; whatever is missing is named as
missing above. All figures, each turn by itself, are in `build/bench/results.json`.
'''


def how(results, train):
    turns, again = disturbance(results, train)
    t = results['train']
    return f'''## How it was measured

- Everybody trains {NETWORK} (ReLU, softmax cross-entropy, plain SGD, rate 0.05, fp32) on
  the same images in the same order, from the same initial weights, and computes each step's loss.
- **Answers first.** The mean loss of 20 steps must be that of pipemlp's serial run (relative 1e-3),
  and the weights of every synchronous pipeline must have its bits; whoever fails has no time.
- **Turns.** All contestants of a batch size are running at once and asleep, but for the one whose
  turn it is: {t['seconds']} s, up to {t['rounds']} rounds, in each round another order, and one
  step before the clock starts. pipemlp's serial run and its two workers have a turn before every
  {BLOCK} others.
- **Figures.** Speeds are medians over the turns, with their quartiles and their 90th percentile,
  which is nearer to what the machine does when nobody else is on it. Ratios and speedups are
  medians of what each turn gives against the reference's turns right before and after it, with
  quartiles: what the machine does meanwhile cancels out, mostly. A turn in which other programs
  had more than an eighth of the processors is repeated, twice at most ({again} repetitions,
  {turns} turns that count).
- **Nobody is hobbled.** OpenBLAS gets the kernels that were fastest here; with two threads, its
  threads of the kind that was faster for the contestant; pipelines have the number of micro-batches
  that was fastest in a short trial. The tables name them.
- PyTorch runs eagerly, with torch.optim.SGD; NumPy is written out by hand into buffers made before;
  scikit-learn's partial_fit gets several batches at a time; dlib trains by its layers' functions.
  PyTorch's pipeline is two processes that hand over with isend and irecv over gloo, cut behind the
  first layer. FANN knows neither softmax nor ReLU: it trains the nearest that it has.
- **Data parallelism** is pipemlp's own operations on two threads that share the rows and one set of
  weights, with barriers that spin: once by the book, gradients added up; once with each gradient
  computed whole by one thread, from all rows, and used in the same pass (peer_data_parallel.c).
- **The ceiling** is pmlp_ceiling(): balance of the cut, fill and drain, hand-offs; counted in
  multiply-adds, or with the costs of its actions measured. It says what the schedule permits, not
  what micro-batches cost, nor two cores that share caches and clock; the row of two trainings at
  once says the latter.
'''


def beginning(results):
    m = results['machine']
    where = m['processor'] + (', a virtual machine' if m['virtual'] else '')
    text = (f'Written by `make bench` on {results["begun"]}, not by hand: {NETWORK}, fp32, on '
            f'{m["cores"]} cores of {where}. Above 1, pipemlp is the faster; in brackets the '
            'quartiles.\n\n')
    if results['quick']:
        text += '**A quick run: it shows that everything works, not how fast it is.**\n\n'
    return '# pipemlp beside others\n\n' + text


MATRICES = '''
## Matrix products

Those of one training step on one core. The libraries compute bare products; pipemlp's contain bias,
activation, derivative, the gradient of the bias and the transposition of the weights.

'''
FLOOR = '''
## Where the time of a step goes

The floor is what the arithmetic would take at the speed of multiply-adds from registers, or the
bytes once from the nearest cache that can hold them, whichever is longer.
'''


def write(results, folder):
    """The page and its pictures; returns the path of the page."""
    train = Train(results)
    drawn, failure = pictures.draw(results, train, folder)
    text = beginning(results)
    if train.all:
        text += in_short(train) + '\n'
    text += failure + ''.join(f'![{what}]({name})\n' for name, what in drawn)
    if train.all:
        text += '\n## Training\n\n' + '\n'.join(training(train, b) for b in train.batches)
        text += '\nVersions:\n\n' + versions(results, train)
    if 'gemm' in results:
        text += MATRICES + gemm(results)
    if 'profile' in results:
        text += FLOOR + profile(results)
    if 'scaling' in results:
        text += '\n## Scaling\n' + scaling(results)
    text += '\n## The machine\n\n' + the_machine(results) + '\n' + speeds_of_the_machine(results)
    text += '\n' + AGAIN
    if train.all:
        text += '\n' + how(results, train)
    path = os.path.join(folder, 'RESULTS.md')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)
    return path
