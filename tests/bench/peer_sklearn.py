"""scikit-learn's MLPClassifier as a contestant: partial_fit() on several batches at a time, because
its checks of the data are paid once per call."""
import peer

o = peer.options(__doc__)
import numpy as np  # noqa: E402  (the number of threads must be set before)
import sklearn  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402

x, labels = peer.images(o, numpy=np)
net = MLPClassifier(hidden_layer_sizes=peer.SIZES[1:-1], activation='relu', solver='sgd', alpha=0,
                    batch_size=o.batch, learning_rate_init=peer.RATE, momentum=0,
                    nesterovs_momentum=False, shuffle=False)
net.partial_fit(x[:o.batch], labels[:o.batch], classes=np.arange(peer.SIZES[-1]))
for l, (w, b) in enumerate(peer.weights(o, numpy=np)):  # in place: its optimizer holds these arrays
    net.coefs_[l][...] = w.T
    net.intercepts_[l][...] = b
where = peer.Rows(len(x), o.batch)
at_once = max(1, 2048 // o.batch)


def fit(steps):
    first, rows = where.next(steps), steps * o.batch
    net.partial_fit(x[first:first + rows], labels[first:first + rows])
    return rows


fit(peer.CHECK)
print(f'ready loss={net.loss_:.9g} '
      f'version="scikit-learn {sklearn.__version__}, NumPy {np.__version__}, {peer.blas()}"',
      flush=True)
peer.serve_runs(lambda: fit(at_once))
