"""PyTorch on a GPU as a contestant: eager, compiled, or the whole step as one CUDA graph.

The images lie on the device; nothing is read back while the clock runs, unless --read 1 asks for
each step's loss, which pipemlp always gives."""
import os
import sys

import peer

o = peer.options(__doc__, mode='eager', math='fp32', read='0')
if o.mode not in ('eager', 'compile', 'graph') or o.math not in ('fp32', 'tf32', 'bf16'):
    sys.exit('--mode eager|compile|graph, --math fp32|tf32|bf16')
import torch  # noqa: E402  (the number of threads must be set before)

if not torch.cuda.is_available():
    built = torch.version.cuda
    sys.exit('PyTorch sees no GPU' if built else 'this PyTorch was built without CUDA')

device = torch.device('cuda')
torch.backends.cuda.matmul.allow_tf32 = o.math == 'tf32'
x, labels = (tensor.to(device) for tensor in peer.images(o, torch=torch))
layers = [peer.linear(torch, w, b) for w, b in peer.weights(o, torch=torch)]
modules = [module for layer in layers for module in (layer, torch.nn.ReLU(inplace=True))]
net = torch.nn.Sequential(*modules[:-1]).to(device)
begin = [p.detach().clone() for p in net.parameters()]
try:
    optimizer = torch.optim.SGD(net.parameters(), lr=peer.RATE, fused=True)
except (TypeError, RuntimeError):  # an older release
    optimizer = torch.optim.SGD(net.parameters(), lr=peer.RATE)


def loss_of(rows, answers):
    # no cache of the rounded weights: it would outlive the step that rounded them in a graph
    with torch.autocast('cuda', torch.bfloat16, enabled=o.math == 'bf16', cache_enabled=False):
        return torch.nn.functional.cross_entropy(net(rows), answers)


if o.mode == 'compile':
    loss_of = torch.compile(loss_of)


def train(rows, answers):
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(rows, answers)
    loss.backward()
    optimizer.step()
    return loss.detach()


def batch_at(first):
    return x[first:first + o.batch], labels[first:first + o.batch]


def warm_up():
    """What compiles, chooses and allocates does so here; then the weights are as before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(4):
            train(*batch_at(0))
    torch.cuda.current_stream().wait_stream(side)


def restore():
    with torch.no_grad():
        for parameter, value in zip(net.parameters(), begin):
            parameter.copy_(value)


def captured():
    """A step that copies its batch to where the graph reads it, and replays the graph."""
    rows, answers = (tensor.clone() for tensor in batch_at(0))
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = train(rows, answers)

    def replay(first):
        some, others = batch_at(first)
        rows.copy_(some, non_blocking=True)
        answers.copy_(others, non_blocking=True)
        graph.replay()
        return loss

    return replay


warm_up()
step_at = captured() if o.mode == 'graph' else lambda first: train(*batch_at(first))
restore()


def step(first):
    loss = step_at(first)
    return loss.item() if o.read == '1' else loss


def check(where):
    return sum(step(where.next()).item() if o.read != '1' else step(where.next())
               for _ in range(peer.CHECK)) / peer.CHECK


class Timed:
    """As many steps as an epoch of the data has, and then the device is waited for."""

    def __init__(self):
        self.where = peer.Rows(len(x), o.batch)
        self.steps = len(x) // o.batch

    def __call__(self):
        for _ in range(self.steps):
            step(self.where.next())
        torch.cuda.synchronize()
        return self.steps * o.batch


loss = check(peer.Rows(len(x), o.batch))
cudnn = torch.backends.cudnn.version()
print(f'ready loss={loss:.9g} version="PyTorch {torch.__version__}" cuda={torch.version.cuda} '
      f'cudnn={cudnn}', flush=True)
peer.serve_runs(Timed())
os._exit(0)  # not the seconds that tearing down takes
