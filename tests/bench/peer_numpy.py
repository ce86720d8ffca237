"""NumPy as a contestant: the training written out by hand, everything into buffers made before."""
import peer

o = peer.options(__doc__)
import numpy as np  # noqa: E402  (the number of threads must be set before)

B = o.batch
x, labels = peer.images(o, numpy=np)
layers = [(w.copy(), b.copy()) for w, b in peer.weights(o, numpy=np)]
L = len(layers)
outs = [w.shape[0] for w, b in layers]
y = [np.empty((B, n), np.float32) for n in outs]
dz = [np.empty((B, n), np.float32) for n in outs]
active = [np.empty((B, n), bool) for n in outs]
dw = [np.empty_like(w) for w, b in layers]
db = [np.empty_like(b) for w, b in layers]
transposed = [w.T for w, b in layers]  # views: BLAS reads them as they are
every = np.arange(B)
column = np.empty((B, 1), np.float32)
scale = np.float32(peer.RATE / B)  # with the rate in dz, dW can be subtracted as it is


def step(first):
    t = labels[first:first + B]
    a = x[first:first + B]
    for l, (w, b) in enumerate(layers):
        np.dot(a, transposed[l], out=y[l])
        np.add(y[l], b, out=y[l])
        if l < L - 1:
            np.maximum(y[l], 0, out=y[l])
        a = y[l]
    p = dz[-1]
    np.max(a, axis=1, keepdims=True, out=column)
    np.subtract(a, column, out=a)
    np.exp(a, out=p)
    np.sum(p, axis=1, keepdims=True, out=column)
    loss = (np.log(column).sum() - a[every, t].sum()) / B
    np.divide(p, column, out=p)
    p[every, t] -= 1
    np.multiply(p, scale, out=p)
    for l in range(L - 1, -1, -1):
        w, b = layers[l]
        below = y[l - 1] if l else x[first:first + B]
        np.dot(dz[l].T, below, out=dw[l])
        np.sum(dz[l], axis=0, out=db[l])
        if l:
            np.dot(dz[l], w, out=dz[l - 1])
            np.greater(below, 0, out=active[l - 1])
            np.multiply(dz[l - 1], active[l - 1], out=dz[l - 1])
        np.subtract(w, dw[l], out=w)
        np.subtract(b, db[l], out=b)
    return loss


peer.serve(o, len(x), step, f'NumPy {np.__version__}, {peer.blas()}')
