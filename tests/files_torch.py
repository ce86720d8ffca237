"""The package safetensors and PyTorch on one side, files_tool and train on the other: each reads what
the other has written. Prints ok and FAIL lines for tests/test_files.sh.

    build/torch/bin/python tests/files_torch.py FILES_TOOL TRAIN FOLDER
"""
import json
import os
import struct
import subprocess
import sys
import warnings

warnings.filterwarnings('ignore')
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

tool, train, folder = sys.argv[1:]
failed = 0


def path(name):
    return os.path.join(folder, name)


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def verdict(text, wrong):
    global failed
    for line in wrong[:3]:
        print(line)
    failed += bool(wrong)
    print(f'{"FAIL" if wrong else "ok  "} files: {text}')


def word_of(tensors, layers):
    """FNV-1a 64 over weights and biases, layer by layer: what `weights=` says."""
    word = 14695981039346656037
    for layer in layers:
        for part in 'weight', 'bias':
            tensor = tensors[f'{layer}.{part}'].to(torch.float32).contiguous()
            for byte in tensor.flatten().view(torch.uint8).tolist():
                word = (word ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return f'{word:016x}'


def metadata_of(name):
    with safe_open(path(name), 'pt') as file:
        return file.metadata()


# --- what train saves ------------------------------------------------------------------------------

wrong = []
options = [train, '--layers', '12,9', '--limit', '300', '--epochs', '1', '--batch', '50', '--optimizer',
           'adam', '--quiet', '--save', path('ours')]
status, said = run(*options)
weights = said.split('weights=')[-1]
tensors, metadata = load_file(path('ours')), metadata_of('ours')
names = [f'layers.{l}.{p}{m}' for l in range(3) for p in ('weight', 'bias')
         for m in ('', '.moment1', '.moment2')]
if sorted(tensors) != sorted(names):
    wrong.append(f'names: {sorted(tensors)}')
if any(t.dtype != torch.float32 for t in tensors.values()):
    wrong.append('another type than F32')
if tuple(tensors['layers.1.weight'].shape) != (9, 12) or tensors['layers.1.bias'].shape != (9,):
    wrong.append(f'shapes: {tensors["layers.1.weight"].shape}')
if word_of(tensors, ['layers.0', 'layers.1', 'layers.2']) != weights or metadata['weights'] != weights:
    wrong.append(f'{weights} by train, {metadata["weights"]} in the file')
if metadata['step'] != '6' or metadata['optimizer'] != 'adam' or metadata['activations'] != 'relu,relu,linear':
    wrong.append(f'metadata: {metadata}')
verdict('safetensors opens what train --save wrote: names, shapes, the weights word', wrong)

# --- what PyTorch saves -----------------------------------------------------------------------------

torch.manual_seed(3)
net = torch.nn.Sequential(torch.nn.Linear(5, 70), torch.nn.ReLU(), torch.nn.Linear(70, 12),
                          torch.nn.ReLU(), torch.nn.Linear(12, 4))
x = torch.tensor([[__import__('math').sin(r + 0.7 * i) for i in range(5)] for r in range(4)])


def expect(name, layers, wrong, want_word=None, tolerance=2e-6, forward=None):
    tensors = load_file(path(name))
    status, said = run(tool, 'show', path(name))
    word = word_of(tensors, layers)
    if status != 0 or said.split()[-1] != (want_word or word):
        wrong.append(f'{name}: {said}, not {word}')
        return
    status, said = run(tool, 'predict', path(name))
    want = (forward or (lambda: torch.softmax(net(x), 1)))().detach().flatten().tolist()
    got = [float(line) for line in said.split()]
    distance = max(abs(a - b) for a, b in zip(want, got)) if len(want) == len(got) else 9
    if distance > tolerance:
        wrong.append(f'{name}: predictions differ by {distance}')


wrong = []
state = net.state_dict()
save_file(state, path('sequential'))
expect('sequential', ['0', '2', '4'], wrong)
save_file({'encoder.layers.' + k: v for k, v in state.items()}, path('prefix'))
expect('prefix', ['encoder.layers.0', 'encoder.layers.2', 'encoder.layers.4'], wrong)
save_file({k.replace('0.', 'fc1.').replace('2.', 'fc2.').replace('4.', 'fc10.'): v
           for k, v in state.items()}, path('fc'))
expect('fc', ['fc1', 'fc2', 'fc10'], wrong)
for dtype, tolerance in (torch.float64, 2e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2):
    save_file({k: v.to(dtype) for k, v in state.items()}, path('typed'))
    expect('typed', ['0', '2', '4'], wrong, tolerance=tolerance)
save_file(state, path('mse'), {'activations': 'relu,relu,linear', 'loss': 'mse'})
expect('mse', ['0', '2', '4'], wrong, forward=lambda: net(x))
tanh = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2), torch.nn.GELU())
save_file(tanh.state_dict(), path('tanh'), {'activations': 'tanh,gelu', 'loss': 'mse', 'author': 'é "x"\n'})
expect('tanh', ['0', '2'], wrong, forward=lambda: tanh(x))
verdict('8 files of PyTorch (Sequential, prefixes, F32, F64, F16, BF16): its words, its predictions', wrong)

# --- there and back -----------------------------------------------------------------------------------

wrong = []
status, said = run(tool, 'copy', path('sequential'), path('copy'))
copy = load_file(path('copy'))
other = torch.nn.ModuleDict({'layers': torch.nn.ModuleList(
    [torch.nn.Linear(5, 70), torch.nn.Linear(70, 12), torch.nn.Linear(12, 4)])})
other.load_state_dict(copy) # strict
for ours, theirs in ('layers.0', '0'), ('layers.1', '2'), ('layers.2', '4'):
    for part in 'weight', 'bias':
        if not torch.equal(copy[f'{ours}.{part}'], state[f'{theirs}.{part}']):
            wrong.append(f'{ours}.{part} differs')
save_file(copy, path('again'), metadata_of('copy')) # another order of everything, the same content
status, said = run(tool, 'show', path('again'))
if status != 0:
    wrong.append(f'our file, saved again by Python: {said}')
copy['layers.1.bias'][3] += 1
save_file(copy, path('changed'), metadata_of('copy'))
status, said = run(tool, 'show', path('changed'))
if status == 0 or 'changed' not in said:
    wrong.append(f'a weight changed under our checksum: {said}')
save_file(copy, path('changed'))
status, said = run(tool, 'show', path('changed'))
if status != 0:
    wrong.append(f'the same without our metadata: {said}')
save_file(tensors, path('resaved'), metadata)
status, said = run(*options[:-1], path('end'), '--epochs', '2', '--resume', path('resaved'))
status_whole, said_whole = run(*options[:-1], path('end'), '--epochs', '2')
if status != 0 or said.split('weights=')[-1] != said_whole.split('weights=')[-1]:
    wrong.append(f'resumed from what Python had saved again: {said}, not {said_whole}')
verdict('PyTorch to C and back into load_state_dict(strict): the same bits; a training that Python '
        'saved again is resumed; a weight changed under our checksum is refused', wrong)

# --- what is refused ----------------------------------------------------------------------------------

wrong = []
torch.save(state, path('pickle'))
save_file({'conv1.weight': torch.zeros(2, 3, 5, 5), 'conv1.bias': torch.zeros(2)}, path('conv'))
save_file({'0.weight': torch.zeros(2, 3), '0.bias': torch.zeros(2), '1.running_mean': torch.zeros(2)},
          path('norm'))
save_file({'0.weight': torch.zeros(2, 3)}, path('nobias'))
save_file({'0.weight': torch.zeros(2, 3, dtype=torch.int64), '0.bias': torch.zeros(2)}, path('ints'))
save_file({'0.weight': torch.zeros(2, 3), '0.bias': torch.zeros(2), '1.weight': torch.zeros(4, 3),
           '1.bias': torch.zeros(4)}, path('misfit'))
for name, says in (('pickle', 'save_file'), ('conv', '[2][3]...'), ('norm', 'running_mean'),
                   ('nobias', "'0.bias' is missing"), ('ints', "'I64'"), ('misfit', '[4][3]')):
    status, said = run(tool, 'show', path(name))
    if status != 1 or says not in said or path(name)[-80:] not in said or '\n' in said:
        wrong.append(f'{name}: {said}')
verdict('6 files of PyTorch that are no multilayer perceptron: refused in a sentence', wrong)

# --- the library's refusals are safetensors' own ------------------------------------------------------


def refuses(data):
    with open(path('odd'), 'wb') as file:
        file.write(data)
    try:
        load_file(path('odd'))
        theirs = False
    except Exception:
        theirs = True
    return theirs, run(tool, 'show', path('odd'))[0] != 0


wrong, count = [], 0
good = {'0.weight': {'dtype': 'F32', 'shape': [1, 2], 'data_offsets': [0, 8]},
        '0.bias': {'dtype': 'F32', 'shape': [1], 'data_offsets': [8, 12]}}
text = json.dumps(good)
odd = [text, text + '   ', text[:-1], text + 'x', text.replace('[8, 12]', '[4, 8]'),
       text.replace('[8, 12]', '[12, 16]'), text.replace('"shape": [1]', '"shape": [2]'),
       text.replace('[1, 2]', '[-1, -2]'), text.replace('F32', 'F33'), text.replace('[0, 8]', '[8, 0]'),
       '{"__metadata__": {"a": 1}, ' + text[1:], '[' * 9999, '{}', '']
for header in odd:
    for extra in -1, 0, 1:
        data = struct.pack('<Q', len(header)) + header.encode() + bytes(12 + extra)
        theirs, ours = refuses(data)
        count += 1
        if theirs and not ours:
            wrong.append(f'safetensors refuses what the library takes: {header[:60]}, {extra}')
verdict(f'{count} odd files: none is read that safetensors refuses', wrong)
sys.exit(failed > 0)
