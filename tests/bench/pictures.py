"""The pictures of RESULTS.md: plain SVG, light or dark as the reader's system is, in colours that
can be told apart without colour vision."""
import os
import re

from contest import PAIR

INK, GRID, PAPER = '#24292f', '#d8dee4', '#ffffff'
BLUE, SKY, ORANGE, GREEN, RED = '#0072b2', '#56b4e9', '#e69f00', '#009e73', '#d55e00'
DARK = {INK: '#e6edf3', GRID: '#30363d', PAPER: '#0d1117', BLUE: '#3a9bdc', SKY: '#7cc7f2',
        ORANGE: '#e6a817', GREEN: '#2bb58c', RED: '#e8743b'}

BARS = {  # {}: the version
    'serial': 'pipemlp, serial', PAIR: 'pipemlp, 2 workers',
    'data-parallel': 'its kernels, data parallel', 'data-parallel-outputs': '… gradients whole',
    'two-serials': 'two serial trainings', 'torch-1': '{}', 'torch-2': '{}, 2 threads',
    'torch-pipe': '{}, 2 processes', 'newer-torch-1': '{}', 'newer-torch-2': '{}, 2 threads',
    'newer-torch-pipe': '{}, 2 processes', 'numpy-1': '{}', 'numpy-2': '{}, 2 threads',
    'dlib-1': '{}', 'dlib-2': '{}, 2 threads', 'sklearn-1': '{}', 'sklearn-2': '{}, 2 threads',
    'fann': '{}'}


def settings(matplotlib):
    matplotlib.use('svg')
    matplotlib.rcParams.update({
        'svg.fonttype': 'none', 'svg.hashsalt': 'pipemlp', 'font.size': 10,
        'font.family': 'sans-serif', 'font.sans-serif': ['DejaVu Sans', 'Verdana', 'Arial'],
        'text.color': INK, 'axes.labelcolor': INK, 'axes.edgecolor': INK, 'xtick.color': INK,
        'ytick.color': INK, 'axes.titlesize': 11, 'axes.titlelocation': 'left',
        'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True,
        'axes.axisbelow': True, 'grid.color': GRID, 'grid.linewidth': 0.8,
        'figure.facecolor': PAPER, 'axes.facecolor': PAPER, 'legend.frameon': False,
        'errorbar.capsize': 2.5, 'lines.linewidth': 1.8})


def save(figure, folder, name, title):
    path = os.path.join(folder, name)
    figure.savefig(path, format='svg', metadata={'Date': None, 'Creator': None, 'Title': title})
    with open(path, encoding='utf-8') as file:
        svg = file.read()
    rules = ''.join(f'[style*="{kind}: {light}"]{{{kind}:{dark}!important}}'
                    for light, dark in DARK.items() for kind in ('fill', 'stroke'))
    style = f'<style>@media (prefers-color-scheme:dark){{{rules}}}</style>\n'
    svg = re.sub(r'(<svg [^>]*>\n)', lambda found: found[1] + style, svg, count=1)
    with open(path, 'w', encoding='utf-8') as file:
        file.write('\n'.join(line.rstrip() for line in svg.splitlines()) + '\n')


def spread(contestants, what):
    """Median and the distances to the quartiles, as errorbar() wants them."""
    found = [c[what] for c in contestants]
    middle = [f['median'] for f in found]
    return middle, [[m - f['low'] for m, f in zip(middle, found)],
                    [f['high'] - m for m, f in zip(middle, found)]]


# --- samples per second ---------------------------------------------------------------------------

def colour(key):
    if key in ('serial', PAIR):
        return BLUE
    if key in ('data-parallel', 'data-parallel-outputs', 'two-serials'):
        return SKY
    return ORANGE


def draw_train(plt, train, folder):
    keys = [k for k in BARS if any(train.get(b, k) for b in train.batches)]
    figure, panels = plt.subplots(1, len(train.batches), sharey=True, squeeze=False,
                                  figsize=(2.6 + 2.6 * len(train.batches), 1.2 + 0.32 * len(keys)),
                                  layout='constrained')
    for panel, batch in zip(panels[0], train.batches):
        for at, key in enumerate(keys):
            found = train.get(batch, key)
            if not found:
                panel.annotate('none', (0, at), (4, 0), fontsize=9, va='center',
                               textcoords='offset points')
                continue
            middle, errors = spread([found], 'speed')
            panel.barh(at, [m / 1000 for m in middle], height=0.68, color=colour(key),
                       xerr=[[e / 1000 for e in side] for side in errors],
                       error_kw={'ecolor': INK, 'elinewidth': 1})
            panel.annotate(f'{middle[0] / 1000:,.{0 if middle[0] >= 9950 else 1}f}',
                           (found['speed']['high'] / 1000, at), (4, 0), fontsize=9, va='center',
                           textcoords='offset points')
        panel.set_title(f'B = {batch}')
        panel.grid(axis='y', visible=False)
        panel.tick_params(axis='y', length=0)
        panel.margins(x=0.22, y=0.01)
        panel.set_xlim(left=0)
    some = {key: c for (_, key), c in train.by.items() if not c['failure']}
    panels[0][0].set_yticks(range(len(keys)), [
        BARS[k].format(some[k]['ready']['version'].split(',')[0].split('+')[0].replace('a0', ''))
        for k in keys])
    panels[0][0].invert_yaxis()
    figure.supxlabel('thousand samples per second: median, quartiles', fontsize=10)
    save(figure, folder, 'train.svg', 'Samples per second')
    plt.close(figure)


# --- micro-batches --------------------------------------------------------------------------------

def ceiling_line(panel, found, kind, style, label):
    points = [(c['x'], float(c['ceiling'][kind])) for c in found if kind in c.get('ceiling', {})]
    if points:
        panel.plot(*zip(*points), style, color=RED, label=label)


def draw_microbatches(plt, found, train, folder):
    groups = {}
    for c in found:
        if c['key'].startswith('microbatches-') and c['threads'] > 1:
            groups.setdefault(c['batch'], []).append(c)
    if not groups:
        return False
    figure, panels = plt.subplots(1, len(groups), sharey=True, squeeze=False,
                                  figsize=(1 + 4.4 * len(groups), 3.9), layout='constrained')
    for panel, (batch, found) in zip(panels[0], sorted(groups.items())):
        x = [c['x'] for c in found]
        ceiling_line(panel, found, 'counted', '--', 'ceiling, counted')
        ceiling_line(panel, found, 'measured', ':', 'ceiling, costs measured')
        middle, errors = spread(found, 'against_serial')
        panel.errorbar(x, middle, yerr=errors, fmt='o-', color=BLUE, label='measured')
        both = train.get(batch, 'two-serials')
        if both:
            panel.axhline(both['against_serial']['median'], color=GREEN, linestyle='-.',
                          label='two serial trainings at once')
        panel.set_xscale('log', base=2)
        panel.set_xticks(x, [str(n) for n in x])
        panel.minorticks_off()
        panel.set_title(f'B = {batch}')
        panel.set_xlabel('micro-batches')
    panels[0][0].set_ylabel('speedup of two workers over serial')
    panels[0][0].set_ylim(bottom=min(0.9, panels[0][0].get_ylim()[0]))
    panels[0][-1].legend(loc='lower right')
    save(figure, folder, 'microbatches.svg', 'Speedup against micro-batches')
    plt.close(figure)
    return True


# --- scaling --------------------------------------------------------------------------------------

def draw_times(panel, found, kind, label):
    for workers, mark, shade in ((1, 'o-', ORANGE), (2, 's-', BLUE)):
        here = [c for c in found if c['key'].startswith(kind + '-') and c['threads'] == workers]
        if here:
            panel.plot([c['x'] for c in here],
                       [1000 * c['batch'] / c['speed']['median'] for c in here], mark, color=shade,
                       label='serial' if workers == 1 else 'two workers')
    x = sorted({c['x'] for c in found if c['key'].startswith(kind + '-')})
    panel.set_xscale('log', base=2)
    panel.set_yscale('log')
    panel.set_xticks(x, [str(n) for n in x])
    panel.minorticks_off()
    panel.yaxis.get_major_locator().set_params(subs=(1, 2, 5))
    panel.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    panel.set_xlabel(label)
    panel.set_title('ms a step, B = 128')
    panel.legend()


def draw_workers(panel, found, cores):
    here = [c for c in found if c['key'].startswith('workers-')]
    if not here:
        return
    x = [c['x'] for c in here]
    middle, errors = spread(here, 'against_serial')
    panel.bar(x, middle, width=0.62, color=BLUE, yerr=errors,
              error_kw={'ecolor': INK, 'elinewidth': 1}, label='measured')
    points = [(c['x'], float(c['ceiling']['counted'])) for c in here
              if 'counted' in c.get('ceiling', {})]
    if points:
        panel.plot(*zip(*points), '_', color=RED, markersize=26, markeredgewidth=2.5,
                   label='ceiling, counted')
    panel.axhline(cores, color=GREEN, linestyle='-.', label=f'{cores} cores')
    panel.set_xticks(x, [str(n) for n in x])
    panel.set_xlabel('workers')
    panel.set_title('speedup, 8 × 256, m = 8')
    panel.grid(axis='x', visible=False)
    panel.set_ylim(top=1.35 * panel.get_ylim()[1])
    panel.legend(loc='upper left', ncols=2)


def draw_scaling(plt, found, cores, folder):
    figure, panels = plt.subplots(1, 3, figsize=(11.4, 3.9), layout='constrained')
    draw_times(panels[0], found, 'width', 'width of three hidden layers')
    draw_times(panels[1], found, 'depth', 'hidden layers of 256')
    draw_workers(panels[2], found, cores)
    save(figure, folder, 'scaling.svg', 'Scaling with width, depth and workers')
    plt.close(figure)


def draw(results, train, folder):
    """Writes what there are figures for; [(file, what it shows)], and why there are none."""
    drawn = []
    try:
        import matplotlib
        settings(matplotlib)
        import matplotlib.pyplot as plt
    except ImportError:
        return drawn, 'No pictures: matplotlib is missing.\n\n'
    if train.all:
        draw_train(plt, train, folder)
        drawn.append(('train.svg', 'Samples per second of all contestants'))
    found = [c for c in results.get('scaling', {}).get('contestants', []) if not c['failure']]
    if found:
        if draw_microbatches(plt, found, train, folder):
            drawn.append(('microbatches.svg', 'Speedup of two workers against micro-batches'))
        draw_scaling(plt, found, results['machine']['cores'], folder)
        drawn.append(('scaling.svg', 'Scaling with width, depth and workers'))
    return drawn, ''
