"""What the contestants in Python share: options, data, weights and the protocol of peer.h."""
import argparse
import ctypes
import os
import sys
import time

SIZES = (784, 512, 256, 128, 10)
CHECK = 20  # steps whose losses are compared
RATE = 0.05


def options(description, **more):
    """The options of every contestant, and `more` of its own: name=default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--data', default='build/data')
    parser.add_argument('--weights', required=True)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--rows', type=int, default=0)
    parser.add_argument('--wait', type=int, default=0)
    for name, default in more.items():
        parser.add_argument('--' + name.replace('_', '-'), default=default)
    o = parser.parse_args()
    for name in ('OMP', 'OPENBLAS', 'MKL', 'BLIS'):  # before anything that reads them is imported
        os.environ[name + '_NUM_THREADS'] = str(o.threads)
    return o


def images(o, numpy=None, torch=None):
    """x [rows][784] float32, 0 .. 1, and labels [rows]: arrays of NumPy or tensors of PyTorch."""
    data = []
    for name in ('images-idx3', 'labels-idx1'):
        with open(os.path.join(o.data, f'train-{name}-ubyte'), 'rb') as file:
            data.append(bytearray(file.read()))
    rows = int.from_bytes(data[0][4:8], 'big')
    if len(data[1]) != 8 + rows or len(data[0]) != 16 + rows * SIZES[0]:
        sys.exit(f'{o.data}: no IDX files, or of another size')
    rows = min(rows, o.rows or rows)
    if o.wait:  # until it is this program's turn to use the processors
        print('loaded', flush=True)
        sys.stdin.readline()
    if torch:
        x, labels = (torch.frombuffer(d, dtype=torch.uint8) for d in data)
        x = x[16:16 + rows * SIZES[0]].reshape(rows, SIZES[0]).float()
        return x / 255, labels[8:8 + rows].long()
    x, labels = (numpy.frombuffer(d, numpy.uint8) for d in data)
    x = x[16:16 + rows * SIZES[0]].reshape(rows, SIZES[0]).astype(numpy.float32)
    return x / numpy.float32(255), labels[8:8 + rows].astype(numpy.int64)


def weights(o, numpy=None, torch=None):
    """[(w [n_out][n_in], b [n_out])] of each layer."""
    with open(o.weights, 'rb') as file:
        data = bytearray(file.read())
    flat = torch.frombuffer(data, dtype=torch.float32) if torch else \
        numpy.frombuffer(data, numpy.float32)
    layers, at = [], 0
    for n_in, n_out in zip(SIZES, SIZES[1:]):
        w, b = flat[at:at + n_in * n_out], flat[at + n_in * n_out:at + (n_in + 1) * n_out]
        layers.append((w.reshape(n_out, n_in), b))
        at += (n_in + 1) * n_out
    if 4 * at != len(data):
        sys.exit(f'{o.weights}: holds other weights')
    return layers


def linear(torch, w, b):
    """A layer with these weights."""
    made = torch.nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        made.weight.copy_(w)
        made.bias.copy_(b)
    return made


def blas():
    """Which OpenBLAS is loaded, and with which kernels."""
    with open('/proc/self/maps') as maps:
        paths = sorted({line.split()[-1] for line in maps if '.so' in line})
    for path in paths:
        if 'openblas' not in path and 'libblas' not in path and 'blis' not in path:
            continue
        library = ctypes.CDLL(path)
        try:
            name = library.openblas_get_corename
        except AttributeError:
            continue
        name.restype = ctypes.c_char_p
        config = library.openblas_get_config
        config.restype = ctypes.c_char_p
        release = config().decode().split()[1]
        threads = ('', ' pthreads', ' OpenMP')[library.openblas_get_parallel()]
        return f'OpenBLAS {release} {name().decode()}{threads}'
    return 'other BLAS'


def torch_blas(torch):
    return 'MKL' if torch.backends.mkl.is_available() else blas()


class Rows:
    """Where steps begin: the rows in order, then from the first again."""

    def __init__(self, rows, batch):
        if batch > rows:
            sys.exit('--batch: more than the data has rows')
        self.rows, self.batch, self.at = rows, batch, 0

    def next(self, steps=1):
        first = self.at if self.at + steps * self.batch <= self.rows else 0
        self.at = first + steps * self.batch
        return first


def serve(o, rows, step, version, check=None, more=''):
    """step(first) trains on one batch and returns its mean loss, or something with .item()."""
    where = Rows(rows, o.batch)

    def value(loss):
        return loss.item() if hasattr(loss, 'item') else loss

    if check:
        loss = check(where)
    else:
        loss = sum(value(step(where.next())) for _ in range(CHECK)) / CHECK
    print(f'ready loss={loss:.9g} {more}{" " if more else ""}version="{version}"', flush=True)
    serve_runs(lambda: (step(where.next()), o.batch)[1])


def serve_runs(step):
    """step() returns how many samples it trained on."""
    clock = time.perf_counter
    for line in sys.stdin:
        words = line.split()
        if words[:1] == ['quit']:
            break
        if len(words) != 2 or words[0] != 'run':
            print('what?', flush=True)
            continue
        step()  # wakes threads, fills caches
        samples, seconds = 0, float(words[1])
        begin = end = clock()
        while end - begin < seconds:
            samples += step()
            end = clock()
        print(f'samples={samples} seconds={end - begin:.6f}', flush=True)
