"""Writes RESULTS-gpu.md from the figures that bench_gpu.py has measured."""
import os

from report import NETWORK, number, table

SIZES = tuple(int(n) for n in NETWORK.split('-'))
PAIRS = list(zip(SIZES, SIZES[1:]))
WEIGHTS = sum(n * m for n, m in PAIRS)
PEERS = ('eager', 'compile', 'graph', 'graph-read')
PEAK = {'fp32': ('fp32', 'fma'), 'tf32': ('tf32',), 'bf16': ('bf16',)}

FLOOR_NAMES = (
    ('fma', 'multiply-adds of registers, fp32'),
    ('fp32', 'cuBLAS, a large product, fp32'),
    ('tf32', 'cuBLAS, a large product, TF32'),
    ('bf16', 'cuBLAS, a large product, bf16'),
    ('copy', 'memory, a copy, read and written'),
    ('read', 'memory, read'),
    ('launch', 'an empty kernel, launched by itself'),
    ('graph', 'an empty kernel in a CUDA graph'),
    ('trip', 'a graph of one empty kernel, until the host knows'),
)

HOW = '''## How it is measured

- A step is forward, loss, backward and update of SGD on rows that lie on the GPU. pipemlp's steps
  are those of `pmlp_trainer_epoch()`: the loss of each is on the host at its end, and the host has
  waited for it; *no wait between steps* is PipeDream on one worker, which is serial training in
  passes of many steps, and must have its bits. PyTorch's loss is not read while the clock runs, but for the row that says so, and
  the host waits at the end of each pass over the images only.
- Everybody trains 20 steps from the same weights on the same rows first; the mean loss must be the
  CPU back end's within {tolerance}, relative, and kernels issued one by one must give the very bits
  of the graph. Who is off is named in place of a time.
- Processes wait side by side and take turns of {seconds} s, {rounds} rounds, in an order drawn anew
  in each. Figures are medians, in brackets the quartiles.
- The least time of a step is the larger of two: its arithmetic, {flops:.3f} MFLOP per row, at the
  best rate found on this card for that precision, and its traffic, weights read and written and the
  images read once, at the rate of the copy.
'''


def spread(found, digits=1):
    median, low, high = (f'{found[key]:,.{digits}f}' for key in ('median', 'low', 'high'))
    return f'{median} ({low} .. {high})'


def short_failure(record):
    return record['failure'].split(';')[0][:60]


class Steps:
    def __init__(self, results):
        self.all = results.get('steps', [])
        self.batches = sorted({r['batch'] for r in self.all})
        self.maths = [m for m in PEAK if any(r['math'] == m for r in self.all)]
        self.by = {(r['batch'], r['math'], r['key']): r for r in self.all}

    def us(self, batch, math, key):
        found = self.by.get((batch, math, key))
        return found['us']['median'] if found and not found['failure'] else None

    def best_peer(self, batch, math):
        """(microseconds, title)"""
        times = [(self.us(batch, math, key), self.by[batch, math, key]['title'])
                 for key in PEERS if self.us(batch, math, key)]
        return min(times) if times else None


# --- the least time of a step ---------------------------------------------------------------------

def flops(batch):
    """F and W of every layer, I of all but the first."""
    return 2 * batch * (3 * WEIGHTS - PAIRS[0][0] * PAIRS[0][1])


def traffic(batch):
    """Bytes of the weights, read and written, and of the images."""
    return 4 * (2 * WEIGHTS + batch * SIZES[0])


def least(results, batch, math):
    """Microseconds of arithmetic and of traffic."""
    rate = max(results['floors'][name]['median'] for name in PEAK[math])
    return (1e-6 * flops(batch) / rate,
            1e-3 * traffic(batch) / results['floors']['copy']['median'])


# --- parts of the page ----------------------------------------------------------------------------

def beginning(results):
    gpu, r = results['gpu'], results
    peer = next((s['ready'] for s in r.get('steps', []) if s['group'] == 'peer' and
                 not s['failure']), None)
    versions = f'driver {r["driver"]}, CUDA {gpu["runtime"]}, cuBLAS {gpu["cublas"]}'
    if peer:
        versions += f', {peer["version"]} with CUDA {peer["cuda"]}'
    return (f'# pipemlp on a GPU\n\nWritten by `make bench-cuda` on {r["begun"]}, not by hand: '
            f'{NETWORK} on one {gpu["name"]} ({gpu["processors"]} multiprocessors, '
            f'{gpu["clock_mhz"]} MHz at most, {gpu["memory_gib"]} GiB), {versions}; '
            f'{r["machine"]["processor"]}, {r["machine"]["system"]}. It took {r["minutes"]:.0f} '
            f'minutes.\n')


def in_short(results, steps):
    rows = []
    for math in steps.maths:
        for batch in steps.batches:
            own, peer = steps.us(batch, math, 'fused'), steps.best_peer(batch, math)
            arithmetic, memory = least(results, batch, math)
            bound = max(arithmetic, memory)
            rows.append([math, batch, f'**{own:,.1f}**' if own else 'none', f'{arithmetic:.1f}',
                         f'{memory:.1f}', f'{100 * bound / own:.0f} %' if own else '',
                         f'{peer[0]:,.1f}' if peer else 'none', peer[1] if peer else '',
                         f'{peer[0] / own:.2f}' if peer and own else ''])
    head = ['', 'B', 'pipemlp, us per step', 'arithmetic, at least', 'memory, at least',
            'of that reached', 'best PyTorch', 'which', 'times as fast']
    return table(head, rows, 'lrrrrrrlr')


def all_steps(steps, math):
    keys = list(dict.fromkeys(r['key'] for r in steps.all))
    rows = []
    for key in keys:
        found = [steps.by[batch, math, key] for batch in steps.batches]
        rows.append([found[0]['title']] + [
            short_failure(r) if r['failure'] else spread(r['us']) for r in found])
    off = [max((r['off'] for r in steps.all if r['batch'] == batch and r['math'] == math and
                not r['failure']), default=None) for batch in steps.batches]
    rows.append(['losses differ from the CPU\'s by at most'] +
                ['' if value is None else f'{value:.1g}' for value in off])
    return table(['us per step'] + [f'B = {batch}' for batch in steps.batches], rows,
                 'l' + 'r' * len(steps.batches))


def card(results):
    rows = []
    for name, title in FLOOR_NAMES:
        f = results['floors'][name]
        values = [number(f[key]) for key in ('median', 'low', 'high')]
        rows.append([title, f'{values[0]} ({values[1]} .. {values[2]})', f['unit']])
    return table(['the card', 'measured', ''], rows, 'lrl')


def schedules(results):
    found = results['schedules']
    whole = next((r for r in found if r['key'] == 'whole' and not r['failure']), None)
    rows = []
    for r in found:
        if r['failure']:
            rows.append([r['title'], short_failure(r), '', ''])
            continue
        bits = {'pipeline': 'yes', 'asynchronous': 'asynchronous'}.get(r['group'], '')
        ratio = f'{whole["us"]["median"] / r["us"]["median"]:.2f}' if whole else ''
        rows.append([r['title'], spread(r['us']), ratio, bits])
    text = (f'Two workers on the one GPU, {results["parts"]} micro-batches, B = '
            f'{found[0]["batch"]}, {found[0]["math"]}: whether a schedule costs much where it '
            'cannot gain much. *Bits*: those of one worker with the same micro-batches.\n\n')
    return text + table(['', 'us per step', 'of one worker\'s speed', 'bits'], rows, 'lrrl')


def accuracy(results):
    rows = []
    for r in results['accuracy']:
        if r['failure']:
            rows.append([r['name'], r['failure'], '', '', '', ''])
            continue
        again = {True: 'yes', False: '**no**'}.get(r.get('again'), '')
        rows.append([r['name'], r['test_accuracy'], r['train_loss'], r['seconds'],
                     f'`{r["weights"]}`', again])
    data = results.get('data', 'Fashion-MNIST')
    text = f'{data}, B = 128, momentum, {results["epochs"]} epochs, `train` as it is.\n\n'
    return text + table(['', 'test accuracy', 'training loss', 'seconds', 'weights',
                         'the same bits again'], rows, 'lrrrll')


def how(results):
    tolerance = ', '.join(f'{t:g} ({math})' for math, t in results['tolerance'].items())
    return HOW.format(tolerance=tolerance, seconds=results['seconds'], rounds=results['rounds'],
                      flops=flops(1) / 1e6)


def write(results, folder):
    """The page; returns its path."""
    steps = Steps(results)
    text = beginning(results) + '\n'
    if steps.all:
        text += in_short(results, steps)
        for math in steps.maths:
            text += f'\n## {math}\n\n' + all_steps(steps, math)
    text += '\n## The card\n\n' + card(results)
    if 'schedules' in results:
        text += '\n## Schedules\n\n' + schedules(results)
    if 'accuracy' in results:
        text += '\n## Accuracy\n\n' + accuracy(results)
    path = os.path.join(folder, 'RESULTS-gpu.md')
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text + '\n' + how(results))
    return path
