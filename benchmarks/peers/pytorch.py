"""Plain PyTorch: what a user writes without a library. In float64 it is the truth that errors are measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.models.networks import Network
from benchmarks.peers import Ask, Call, Entry

LIBRARY = "torch"
PACKAGE = None
#: samples whose gradients exist at one time under torch.func
CHUNK = 16


def flat(blocks: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([block.reshape(-1) for block in blocks])


def unflat(v: Tensor, like: list[Tensor]) -> list[Tensor]:
    return [b.view_as(p) for b, p in zip(v.split([p.numel() for p in like]), like, strict=True)]


def sample_losses(network: Network) -> Tensor:
    """ℓ_n, [N], of the classifier form of a network."""
    x, y = network.batch
    losses = F.cross_entropy(network.model(x), y, reduction="none")
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def gradient(network: Network) -> Tensor:
    loss = network.loss(network.model(network.batch[0]), network.batch[1])
    return flat(torch.autograd.grad(loss, list(network.model.parameters())))


def forward_product(value: Tensor, parameters: list[Tensor], v: list[Tensor]) -> Tensor:
    """J v by two backward passes: the first is linear in its cotangent."""
    cotangent = torch.zeros_like(value, requires_grad=True)
    pulled = torch.autograd.grad(value, parameters, cotangent, create_graph=True)
    return torch.autograd.grad(pulled, cotangent, v, retain_graph=True)[0]


def hessian_product(network: Network, v: Tensor) -> Tensor:
    """H v by double backward."""
    parameters = list(network.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        loss = network.loss(network.model(network.batch[0]), network.batch[1])
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        return flat(torch.autograd.grad(first, parameters, unflat(v, parameters)))


def ggn_product(network: Network, v: Tensor, curve: Callable | None = None) -> Tensor:
    """G v = Jᵀ H_ℓ J v on one kept graph; ``curve`` takes the place of H_ℓ."""
    parameters = list(network.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        output = network.model(network.batch[0])
        Jv = forward_product(output, parameters, unflat(v, parameters))
        leaf = output.detach().requires_grad_()
        residual = torch.autograd.grad(
            network.loss(leaf, network.batch[1]), leaf, create_graph=True
        )[0]
        if curve is None:
            u = torch.autograd.grad(residual, leaf, Jv.detach())[0]
        else:
            u = curve(residual.detach(), Jv.detach())
        return flat(torch.autograd.grad(output, parameters, u))


def token_fisher_product(network: Network, v: Tensor) -> Tensor:
    """F v with each position a datum: Jᵀ (M r ⟨r, J v⟩)."""

    def curve(r: Tensor, Jv: Tensor) -> Tensor:
        M = r.numel() // r.shape[1]
        return M * r * (r * Jv).sum(1, keepdim=True)

    return ggn_product(network, v, curve)


def fisher_product(network: Network, v: Tensor) -> Tensor:
    """F_emp v = (1/N) Σ g_n ⟨g_n, v⟩ on one kept graph."""
    parameters = list(network.model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        losses = sample_losses(network)
        c = forward_product(losses, parameters, unflat(v, parameters)).detach()
        return flat(torch.autograd.grad(losses, parameters, c / len(c)))


def per_sample(network: Network) -> tuple[Callable, dict[str, Tensor]]:
    """The gradient of one sample's loss, a function of (parameters, x, y), and the parameters."""
    model, buffers = network.model, dict(network.model.named_buffers())
    named = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, (p, buffers), (x.unsqueeze(0),))
        return F.cross_entropy(logits, y.unsqueeze(0))

    return grad(loss), named


def per_sample_squares(network: Network, chunk: int = CHUNK) -> Tensor:
    """diag F_emp: some samples' gradients at a time, squared and summed."""
    gradient_of, named = per_sample(network)
    x, y = network.batch
    total: list[Tensor] | None = None
    for begin in range(0, len(x), chunk):
        end = begin + chunk
        blocks = vmap(gradient_of, (None, 0, 0))(named, x[begin:end], y[begin:end])
        squares = [b.square_().sum(0) for b in blocks.values()]
        total = (
            squares if total is None else [t.add_(s) for t, s in zip(total, squares, strict=True)]
        )
    assert total is not None
    return flat(total) / len(x)


def norms_of_samples(network: Network) -> Callable[[Tensor, Tensor], Tensor]:
    """‖g_n‖ of some samples, a function of (x, y)."""
    gradient_of, named = per_sample(network)

    def norm(x: Tensor, y: Tensor) -> Tensor:
        return sum(b.square().sum() for b in gradient_of(named, x, y).values()).sqrt()

    return vmap(norm)


def by_chunks(function: Callable[[Tensor, Tensor], Tensor], network: Network) -> Tensor:
    x, y = (t.split(CHUNK) for t in network.batch)
    return torch.cat([function(a, b) for a, b in zip(x, y, strict=True)])


def per_sample_norms(network: Network) -> Tensor:
    return by_chunks(norms_of_samples(network), network)


def forward_over_reverse(network: Network, v: Tensor) -> Tensor:
    """H v by jvp of grad, which torch.compile can take in, unlike double backward."""
    model, buffers = network.model, dict(network.model.named_buffers())
    named = {name: p.detach() for name, p in model.named_parameters()}
    x, y = network.batch

    def loss(p: dict[str, Tensor]) -> Tensor:
        return network.loss(functional_call(model, (p, buffers), (x,)), y)

    direction = dict(zip(named, unflat(v, list(named.values())), strict=True))
    with sdpa_kernel(SDPBackend.MATH):
        return flat(list(jvp(grad(loss), (named,), (direction,))[1].values()))


def columns(product: Callable[[Network, Tensor], Tensor]) -> Callable[[Network, Tensor], Tensor]:
    return lambda network, V: torch.stack([product(network, v) for v in V.unbind(1)], 1)


def simple(function: Callable[..., Tensor], vectors: str | None = None) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        network = ask.network.classifier()
        arguments = () if vectors is None else (getattr(ask, vectors),)
        return lambda: function(network, *arguments)

    return make


def compiled(function: Callable[..., Tensor], vectors: str | None = None) -> Callable[[Ask], Call]:
    def make(ask: Ask) -> Call:
        network = ask.network.classifier()
        fast = torch.compile(lambda *vs: function(network, *vs), dynamic=False, fullgraph=True)
        arguments = () if vectors is None else (getattr(ask, vectors),)
        return lambda: fast(*arguments)

    return make


def compiled_norms(ask: Ask) -> Call:
    """The work of one chunk compiled, not the loop over chunks, which would be written out."""
    network = ask.network.classifier()
    fast = torch.compile(norms_of_samples(network), dynamic=False, fullgraph=True)
    return lambda: by_chunks(fast, network)


def compiled_gradient(ask: Ask) -> Call:
    """The model compiled, as in training: the backward graph is compiled with it."""
    network = ask.network
    model = torch.compile(network.model, dynamic=False)
    parameters = list(network.model.parameters())

    def call() -> Tensor:
        loss = network.loss(model(network.batch[0]), network.batch[1])
        return flat(torch.autograd.grad(loss, parameters))

    return call


def entries() -> list[Entry]:
    return [
        Entry("gradient", LIBRARY, "eager", lambda ask: lambda: gradient(ask.network)),
        Entry("H v", "torch (double backward)", "eager", simple(hessian_product, "v")),
        Entry("G v", "torch (double backward)", "eager", simple(ggn_product, "v")),
        Entry("F_emp v", "torch (double backward)", "eager", simple(fisher_product, "v")),
        Entry("diag F_emp", "torch.func", "eager", simple(per_sample_squares)),
        Entry("norms", "torch.func", "eager", simple(per_sample_norms)),
        Entry("gradient", LIBRARY, "compiled", compiled_gradient),
        Entry("H v", "torch.func", "compiled", compiled(forward_over_reverse, "v")),
        Entry("norms", "torch.func", "compiled", compiled_norms),
    ]


def lanczos_operator(letter: str, ask: Ask) -> Callable[[Tensor], Tensor]:
    network = ask.network.classifier()
    product = {"H": hessian_product, "G": ggn_product, "F_emp": fisher_product}[letter]
    return lambda v: product(network, v)
