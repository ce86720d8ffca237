"""A pipeline of two processes as one writes it by hand with torch.distributed: the first layer, the
largest, in one process, the others in the other; one thread each, hand-offs by isend and irecv over
gloo. The forwards of all micro-batches leave the first stage one after the other, as in GPipe; the
last stage does each backward as soon as it can, which is never slower."""
import os
import subprocess
import sys
import tempfile

import peer

o = peer.options(__doc__, microbatches='4', stage='0', meeting='', cut='1')
import torch  # noqa: E402  (the number of threads must be set before)
import torch.distributed as dist  # noqa: E402

torch.set_num_threads(1)
stage, cut, m = int(o.stage), int(o.cut), int(o.microbatches)
if o.batch % m:
    sys.exit('--microbatches: must divide the batch')
part = o.batch // m


def modules(layers, last):
    """Linear and ReLU of these layers; none behind the network's last."""
    made = []
    for i, (w, b) in enumerate(layers):
        made += [peer.linear(torch, w, b)]
        if not last or i < len(layers) - 1:
            made += [torch.nn.ReLU(inplace=True)]
    return torch.nn.Sequential(*made)


def lower_stage(x):
    layers = peer.weights(o, torch=torch)[:cut]
    net = modules(layers, last=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=peer.RATE)
    gradients = [torch.empty(part, layers[-1][0].shape[0]) for _ in range(m)]

    def step(first):
        optimizer.zero_grad(set_to_none=True)
        outputs, sends = [], []
        receives = [dist.irecv(gradients[i], 1) for i in range(m)]
        for i in range(m):
            outputs.append(net(x[first + i * part:first + (i + 1) * part]))
            sends.append(dist.isend(outputs[-1].detach(), 1))
        for i in range(m):
            receives[i].wait()
            outputs[i].backward(gradients[i])
        for send in sends:
            send.wait()
        optimizer.step()
        return o.batch

    return step


def upper_stage(labels):
    layers = peer.weights(o, torch=torch)[cut:]
    net = modules(layers, last=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=peer.RATE)
    inputs = [torch.empty(part, layers[0][0].shape[1], requires_grad=True) for _ in range(m)]
    cross_entropy = torch.nn.functional.cross_entropy

    def step(first):
        optimizer.zero_grad(set_to_none=True)
        receives = [dist.irecv(inputs[i].data, 0) for i in range(m)]
        sends, total = [], 0
        for i in range(m):
            receives[i].wait()
            inputs[i].grad = None
            at = first + i * part
            loss = cross_entropy(net(inputs[i]), labels[at:at + part]) / m
            loss.backward()
            sends.append(dist.isend(inputs[i].grad, 0))
            total = total + loss.detach()
        for send in sends:
            send.wait()
        optimizer.step()
        return total

    return step


def serve_lower(x, step):
    where = peer.Rows(len(x), o.batch)
    for _ in range(peer.CHECK):
        step(where.next())
    loss = torch.empty(1, dtype=torch.float64)
    dist.recv(loss, 1)
    print(f'ready loss={loss.item():.9g} microbatches={m} '
          f'version="PyTorch {torch.__version__}, gloo, {peer.torch_blas(torch)}"', flush=True)
    peer.serve_runs(lambda: step(where.next()))


def serve_upper(rows, step):
    where = peer.Rows(rows, o.batch)
    loss = sum(step(where.next()).double() for _ in range(peer.CHECK)) / peer.CHECK
    dist.send(loss.reshape(1), 0)
    while True:  # until the other process is gone
        step(where.next())


def meet(folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/meeting', rank=stage,
                            world_size=2)


def main():
    x, labels = peer.images(o, torch=torch)
    if stage:
        meet(o.meeting)
        try:
            serve_upper(len(x), upper_stage(labels))
        except RuntimeError:  # the other process has gone
            os._exit(0)
    with tempfile.TemporaryDirectory() as folder:
        other = subprocess.Popen([sys.executable, *sys.argv, '--stage', '1', '--meeting', folder,
                                  '--wait', '0'],
                                 stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            meet(folder)
            serve_lower(x, lower_stage(x))
        finally:
            other.kill()
            other.wait()


main()
