"""PyTorch as a contestant: eager mode, autograd, torch.optim.SGD."""
import peer

o = peer.options(__doc__)
import torch  # noqa: E402  (the number of threads must be set before)

torch.set_num_threads(o.threads)
x, labels = peer.images(o, torch=torch)
modules = []
for w, b in peer.weights(o, torch=torch):
    modules += [peer.linear(torch, w, b), torch.nn.ReLU(inplace=True)]
net = torch.nn.Sequential(*modules[:-1])
optimizer = torch.optim.SGD(net.parameters(), lr=peer.RATE)


def step(first):
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(net(x[first:first + o.batch]),
                                             labels[first:first + o.batch])
    loss.backward()
    optimizer.step()
    return loss


peer.serve(o, len(x), step, f'PyTorch {torch.__version__}, {peer.torch_blas(torch)}')
