"""Steps that random networks are made of: each takes [N, T, D] to [N, T, D], so that any of them can be left out.

A step is a class without state but its parameters; what depends on data (orders, masks, indices) comes with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: features and positions of a sample
D, T = 3, 2

Side = Mapping[str, Tensor]


class Step(nn.Module):
    """One step of a network: named parts and ``call(self, h, side)``."""

    def __init__(self, call: Callable[[Step, Tensor, Side], Tensor], **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = call

    def forward(self, h: Tensor, side: Side) -> Tensor:
        return self.call(self, h, side)


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.7)


def zero(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def lin() -> nn.Linear:
    return nn.Linear(D, D)


class Cube(torch.autograd.Function):
    """A user's own operation, which can be differentiated twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3 / 3

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x**2


def attended(s: Step, h: Tensor) -> Tensor:
    """Attention over dimension 1."""
    return torch.softmax(s.q(h) @ s.k(h).transpose(-1, -2), -1) @ h


def fused(s: Step, h: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(s.q(h)[:, None], s.k(h)[:, None], h[:, None])[:, 0]


def experts(s: Step, h: Tensor, side: Side) -> Tensor:
    """Each sample goes to one of two experts, chosen by the data."""
    out = torch.zeros_like(h)
    for number, expert in enumerate((s.a, s.b)):
        mine = (side["segment"] % 2 == number).nonzero().view(-1)
        out = out.index_add(0, mine, expert(h[mine]))
    return out


def chosen_by_values(s: Step, h: Tensor, side: Side) -> Tensor:
    """The same with the choice made by the network."""
    out, first = torch.zeros_like(h), h.detach().sum((1, 2)) > 0
    out = out.index_put((first.nonzero().view(-1),), s.a(h[first]))
    return out.index_put(((~first).nonzero().view(-1),), s.b(h[~first]), accumulate=True)


def padded(h: Tensor, size: int, dim: int) -> Tensor:
    """Cut or repeated to a size along a dimension."""
    while h.shape[dim] < size:
        h = torch.cat([h, h], dim)
    return h.narrow(dim, 0, size)


def masked(s: Step, h: Tensor, side: Side) -> Tensor:
    out = h.clone()
    out[side["mask"]] = s.a(h[side["mask"]])
    return out


def tokens_kept(s: Step, h: Tensor, side: Side) -> Tensor:
    """Samples of different numbers of rows: only positions that are kept go through the layer."""
    keep = side["keep"]
    return torch.zeros_like(h).masked_scatter(
        keep[..., None].expand_as(h), torch.tanh(s.a(h[keep]))
    )


def messages(s: Step, h: Tensor, side: Side) -> Tensor:
    """A graph: what comes along edges between samples is added up."""
    return torch.tanh(s.a(h)) + torch.zeros_like(h).index_add(0, side["order"], s.b(h))


def pooled(s: Step, h: Tensor, side: Side) -> Tensor:
    segment = side["segment"]
    sums = h.new_zeros(4, T, D).index_add(0, segment, s.a(h))
    return h + sums[segment]


def complex_filter(s: Step, h: Tensor, side: Side) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(h) * torch.view_as_complex(s.w), n=D)


def split_merge(s: Step, h: Tensor, side: Side) -> Tensor:
    return s.a(torch.cat([h, h.tanh()], 0)).view(2, *h.shape).sum(0)


def shared(s: Step, h: Tensor, side: Side) -> Tensor:
    return s.a(torch.tanh(s.a(h))) + F.linear(h, s.a.weight.t())


def sample_loop(s: Step, h: Tensor, side: Side) -> Tensor:
    return torch.stack([torch.tanh(s.a(row)) for row in h])


def attended_heads(s: Step, h: Tensor, side: Side) -> Tensor:
    return s.att(h, h, h, need_weights=False)[0]


def attended_time_first(s: Step, h: Tensor, side: Side) -> Tensor:
    z = h.transpose(0, 1)
    return s.att(z, z, z, need_weights=False)[0].transpose(0, 1)


def kept(side: Side) -> Tensor:
    return side["keep"][..., None]


def energy_gradient(s: Step, h: Tensor, side: Side) -> Tensor:
    """Forces: the output of a step is a derivative of what the step computes."""
    z = h if h.requires_grad else h.detach().requires_grad_()
    energy = s.b(torch.tanh(s.a(z))).square().sum()
    return torch.autograd.grad(energy, z, create_graph=True)[0]


def routed(s: Step, h: Tensor, side: Side) -> Tensor:
    """The better of two experts for each position, weighted by its gate, as a mixture of experts does it."""
    gate = s.g(h).softmax(-1)
    weight, choice = gate[..., :2].max(-1)
    out = torch.zeros_like(h)
    for number, expert in enumerate((s.a, s.b)):
        mine = choice == number
        out[mine] = out[mine] + expert(h[mine]) * weight[mine][:, None]
    return out


def padded_attention(s: Step, h: Tensor, side: Side) -> Tensor:
    seen = side["keep"].clone()
    seen[:, 0] = True
    return h + F.scaled_dot_product_attention(s.q(h), s.k(h), h, attn_mask=seen[:, None])


def segment_softmax(s: Step, h: Tensor, side: Side) -> Tensor:
    """Graph attention: weights of one segment add to 1."""
    score = s.a(h).sum((1, 2)).exp()
    total = score.new_zeros(4).scatter_add(0, side["segment"], score)
    return h * (score / total[side["segment"]])[:, None, None]


def parts_by_data(s: Step, h: Tensor, side: Side) -> Tensor:
    first = int(side["mask"].sum())
    return torch.cat([s.a(h[:first]), torch.tanh(s.b(h[first:]))])


def branch_by_data(s: Step, h: Tensor, side: Side) -> Tensor:
    return s.a(h).flip(0) if bool(side["mask"][0]) else s.a(h)


def ragged_pool(s: Step, h: Tensor, side: Side) -> Tensor:
    parts = [
        s.a(row[keep]).sum(0, True).expand(T, D) for row, keep in zip(h, side["keep"], strict=True)
    ]
    return h + torch.stack(parts)


def batch_statistics(s: Step, h: Tensor, side: Side) -> Tensor:
    if len(h) == 1:
        return s.a(h)
    return F.batch_norm(s.a(h).transpose(1, 2), None, None, training=True).transpose(1, 2)


STEPS: dict[str, Callable[[], Step]] = {
    # layers and elementwise functions
    "linear": lambda: Step(lambda s, h, d: s.a(h), a=lin()),
    "linear_tanh": lambda: Step(lambda s, h, d: torch.tanh(s.a(h)), a=lin()),
    "linear_gelu": lambda: Step(lambda s, h, d: F.gelu(s.a(h)), a=lin()),
    "linear_relu": lambda: Step(lambda s, h, d: h + F.relu(s.a(h)), a=lin()),
    "silu": lambda: Step(lambda s, h, d: F.silu(h)),
    "softplus": lambda: Step(lambda s, h, d: F.softplus(h)),
    "gated": lambda: Step(lambda s, h, d: s.a(h) * torch.sigmoid(s.b(h)), a=lin(), b=lin()),
    "bilinear": lambda: Step(lambda s, h, d: s.a(h, h.tanh()), a=nn.Bilinear(D, D, D)),
    "scale_and_shift": lambda: Step(lambda s, h, d: h * s.w + s.b, w=par(D), b=par(T, 1)),
    "scalar_gain": lambda: Step(lambda s, h, d: h * s.w, w=par()),
    "division": lambda: Step(lambda s, h, d: h / (2 + s.w**2), w=par(D)),
    "power": lambda: Step(lambda s, h, d: (h.square() + 1) ** s.w, w=par()),
    "conv": lambda: Step(lambda s, h, d: s.a(h.transpose(1, 2)).transpose(1, 2), a=nn.Conv1d(D, D, 3, padding=1)),
    "conv_over_positions": lambda: Step(lambda s, h, d: s.a(h), a=nn.Conv1d(T, T, 3, padding=1, groups=T)),
    "layer_norm": lambda: Step(lambda s, h, d: s.a(h), a=nn.LayerNorm(D)),
    "group_norm": lambda: Step(lambda s, h, d: s.a(h), a=nn.GroupNorm(1, T)),
    "rms_norm": lambda: Step(lambda s, h, d: s.w * h * (h.square().mean(-1, True) + 0.1).rsqrt(), w=par(D)),
    "lstm": lambda: Step(lambda s, h, d: s.a(h)[0], a=nn.LSTM(D, D, batch_first=True)),
    "gru_time_first": lambda: Step(lambda s, h, d: s.a(h.transpose(0, 1))[0].transpose(0, 1), a=nn.GRU(D, D)),
    "attention": lambda: Step(lambda s, h, d: h + attended(s, h), q=lin(), k=lin()),
    "fused_attention": lambda: Step(lambda s, h, d: h + fused(s, h), q=lin(), k=lin()),
    "multi_head_attention": lambda: Step(attended_heads, att=nn.MultiheadAttention(D, 1, batch_first=True)),
    "multi_head_attention_time_first": lambda: Step(attended_time_first, att=nn.MultiheadAttention(D, 1)),
    "embedding": lambda: Step(lambda s, h, d: h + s.a(d["tokens"]), a=nn.Embedding(5, D)),
    "table": lambda: Step(lambda s, h, d: h * s.w[d["tokens"]], w=par(5, D)),
    # products in other forms
    "einsum": lambda: Step(lambda s, h, d: torch.einsum("ntd,de->nte", h, s.w), w=par(D, D)),
    "einsum_over_positions": lambda: Step(lambda s, h, d: torch.einsum("ntd,tu->nud", h, s.w), w=par(T, T)),
    "einsum_of_both": lambda: Step(lambda s, h, d: torch.einsum("ntd,tde->nte", h, s.w), w=par(T, D, D)),
    "bmm": lambda: Step(lambda s, h, d: torch.bmm(h, s.w.expand(len(h), -1, -1)), w=par(D, D)),
    "baddbmm": lambda: Step(
        lambda s, h, d: torch.baddbmm(s.b, h.transpose(0, 1), s.w).transpose(0, 1), w=par(T, D, D), b=par(T, 1, D)
    ),
    "from_the_left": lambda: Step(lambda s, h, d: s.w @ h, w=par(T, T)),
    "matrix_vector": lambda: Step(lambda s, h, d: torch.stack([h @ row for row in s.w], -1), w=par(D, D)),
    # parameters in disguise
    "shared": lambda: Step(shared, a=lin()),
    "low_rank": lambda: Step(lambda s, h, d: F.linear(h, s.u @ s.v), u=par(D, 1), v=par(1, D)),
    "parametrised": lambda: Step(lambda s, h, d: F.linear(h, s.w * (1 + s.w.square().mean())), w=par(D, D)),
    "normalised_weight": lambda: Step(lambda s, h, d: F.linear(h, F.normalize(s.w, dim=1)), w=par(D, D)),
    "sliced_weight": lambda: Step(lambda s, h, d: h @ s.w[:D] + h.tanh() @ s.w[1 : D + 1], w=par(D + 1, D)),
    "custom_function": lambda: Step(lambda s, h, d: Cube.apply(s.a(h)), a=lin()),
    # zeros that prove nothing
    "zero_gate": lambda: Step(lambda s, h, d: h + s.g * torch.tanh(s.a(h)), a=lin(), g=zero()),
    "zero_projection": lambda: Step(lambda s, h, d: h + torch.tanh(s.a(h)) @ s.w, a=lin(), w=zero(D, D)),
    "zero_gate_on_samples": lambda: Step(
        lambda s, h, d: h + s.g * attended(s, h.transpose(0, 1)).transpose(0, 1), q=lin(), k=lin(), g=zero()
    ),
    "zero_gate_on_order": lambda: Step(lambda s, h, d: h + s.g * s.a(h)[d["order"]], a=lin(), g=zero(D)),
    # the batch dimension moves
    "time_first": lambda: Step(lambda s, h, d: torch.tanh(s.a(h.transpose(0, 1))).transpose(0, 1), a=lin()),
    "samples_last": lambda: Step(lambda s, h, d: (s.w @ h.permute(1, 2, 0)).permute(2, 0, 1), w=par(D, D)),
    "folded": lambda: Step(lambda s, h, d: torch.tanh(s.a(h.reshape(-1, D))).view(h.shape), a=lin()),
    "folded_time_first": lambda: Step(
        lambda s, h, d: s.a(h.transpose(0, 1).reshape(-1, D)).view(T, -1, D).transpose(0, 1), a=lin()
    ),
    "folded_into_features": lambda: Step(
        lambda s, h, d: (s.w @ h.permute(1, 0, 2).reshape(T, -1)).view(T, -1, D).permute(1, 0, 2), w=par(T, T)
    ),
    "repeated": lambda: Step(lambda s, h, d: s.a(h.repeat_interleave(2, 0)).view(-1, 2, T, D).sum(1), a=lin()),
    "tiled": lambda: Step(lambda s, h, d: s.a(h.repeat(2, 1, 1)).view(2, -1, T, D).mean(0), a=lin()),
    "stacked_batches": lambda: Step(split_merge, a=lin()),
    "loop_over_samples": lambda: Step(sample_loop, a=lin()),
    "unbound": lambda: Step(lambda s, h, d: torch.stack([s.a(z) for z in h.unbind(1)], 1), a=lin()),
    # indexing by data
    "there_and_back": lambda: Step(
        lambda s, h, d: torch.tanh(s.a(h[d["order"]]))[d["order"].argsort()], a=lin()
    ),
    "there": lambda: Step(lambda s, h, d: torch.tanh(s.a(h[d["order"]])), a=lin()),
    "index_select": lambda: Step(lambda s, h, d: s.a(h).index_select(0, d["order"]), a=lin()),
    "masked_samples": lambda: Step(masked, a=lin()),
    "kept_positions": lambda: Step(tokens_kept, a=lin()),
    "where": lambda: Step(lambda s, h, d: torch.where(d["mask"][:, None, None], s.a(h), h), a=lin()),
    "masked_select": lambda: Step(
        lambda s, h, d: h.masked_scatter(kept(d), s.a(h).masked_select(kept(d)).tanh()), a=lin()
    ),
    "gather": lambda: Step(lambda s, h, d: s.a(h).gather(1, d["pick"][..., None].expand_as(h)), a=lin()),
    "gather_over_samples": lambda: Step(
        lambda s, h, d: s.a(h).gather(0, d["order"][:, None, None].expand_as(h)), a=lin()
    ),
    "take_along": lambda: Step(lambda s, h, d: h + s.a(h).take_along_dim(d["pick"][..., None], 1), a=lin()),
    "scatter_add": lambda: Step(
        lambda s, h, d: torch.zeros_like(h).scatter_add(1, d["pick"][..., None].expand_as(h), s.a(h)), a=lin()
    ),
    "scatter_over_samples": lambda: Step(
        lambda s, h, d: h.scatter_add(0, d["segment_of_few"][:, None, None].expand_as(h), s.a(h)), a=lin()
    ),
    "messages": lambda: Step(messages, a=lin(), b=lin()),
    "pooled_by_segment": lambda: Step(pooled, a=lin()),
    "experts": lambda: Step(experts, a=lin(), b=lin()),
    "experts_by_values": lambda: Step(chosen_by_values, a=lin(), b=lin()),
    "sort_positions": lambda: Step(lambda s, h, d: s.a(h).sort(1).values, a=lin()),
    "sort_features": lambda: Step(lambda s, h, d: s.a(h).sort(-1, descending=True).values, a=lin()),
    "sort_samples": lambda: Step(lambda s, h, d: s.a(h)[h.detach().sum((1, 2)).argsort()], a=lin()),
    "topk": lambda: Step(lambda s, h, d: padded(s.a(h).topk(2, -1).values, D, -1), a=lin()),
    "largest_over_samples": lambda: Step(lambda s, h, d: h + s.a(h).topk(1, 0).values, a=lin()),
    # samples that see each other
    "centred": lambda: Step(lambda s, h, d: (lambda z: z - 0.5 * z.mean(0))(torch.tanh(s.a(h))), a=lin()),
    "standardised": lambda: Step(lambda s, h, d: s.a(h / (h.var(0, keepdim=True, unbiased=False) + 1).sqrt()), a=lin()),
    "attention_over_samples": lambda: Step(
        lambda s, h, d: h + attended(s, h.transpose(0, 1)).transpose(0, 1), q=lin(), k=lin()
    ),
    "neighbours": lambda: Step(lambda s, h, d: s.a(h) + s.b(h.roll(1, 0)), a=lin(), b=lin()),
    "reversed": lambda: Step(lambda s, h, d: torch.tanh(s.a(h)).flip(0), a=lin()),
    "cumulative_over_samples": lambda: Step(lambda s, h, d: s.a(h).cumsum(0) / len(h), a=lin()),
    "similarity": lambda: Step(
        lambda s, h, d: h + torch.einsum("nm,mtd->ntd", (s.a(h).flatten(1) @ h.flatten(1).T).softmax(1), h), a=lin()
    ),
    "batch_statistics": lambda: Step(batch_statistics, a=lin()),
    "first_to_all": lambda: Step(lambda s, h, d: h + s.a(h[:1]), a=lin()),
    "looked_up_samples": lambda: Step(lambda s, h, d: s.a(h)[d["segment_of_few"]], a=lin()),
    "segment_softmax": lambda: Step(segment_softmax, a=lin()),
    "branch_by_data": lambda: Step(branch_by_data, a=lin()),
    # the course depends on the data
    "routed": lambda: Step(routed, g=lin(), a=lin(), b=lin()),
    "parts_by_data": lambda: Step(parts_by_data, a=lin(), b=lin()),
    "ragged_pool": lambda: Step(ragged_pool, a=lin()),
    "padded_attention": lambda: Step(padded_attention, q=lin(), k=lin()),
    # the rest
    "energy_gradient": lambda: Step(energy_gradient, a=lin(), b=lin()),
    "vmap": lambda: Step(lambda s, h, d: torch.func.vmap(s.a)(h), a=lin()),
    "solve": lambda: Step(
        lambda s, h, d: torch.linalg.solve(torch.eye(D).to(h) + h.mT @ h, s.a(h).mT).mT, a=lin()
    ),
    "inverse_of_weight": lambda: Step(
        lambda s, h, d: h @ torch.linalg.inv(torch.eye(D).to(h) + s.w @ s.w.T), w=par(D, D)
    ),
    "matrix_exp": lambda: Step(lambda s, h, d: h @ torch.matrix_exp(s.w - s.w.T), w=par(D, D)),
    "cdist": lambda: Step(lambda s, h, d: h + torch.cdist(s.a(h), h + 1).sum(-1, True), a=lin()),
    "conv2d": lambda: Step(lambda s, h, d: s.a(h[:, None])[:, 0], a=nn.Conv2d(1, 1, 3, padding=1)),
    "transposed_conv": lambda: Step(lambda s, h, d: s.a(h.mT).mT, a=nn.ConvTranspose1d(D, D, 1)),
    "conv_of_samples": lambda: Step(
        lambda s, h, d: s.a(h.permute(2, 1, 0)).permute(2, 1, 0), a=nn.Conv1d(T, T, 3, padding=1)
    ),
    "batch_norm": lambda: Step(lambda s, h, d: s.a(h), a=nn.BatchNorm1d(T)),
    "embedding_bag": lambda: Step(lambda s, h, d: h + s.a(d["tokens"])[:, None], a=nn.EmbeddingBag(5, D)),
    "index_copy": lambda: Step(lambda s, h, d: h.index_copy(0, d["order"][:1], s.a(h)[:1]), a=lin()),
    "index_fill": lambda: Step(lambda s, h, d: s.a(h).index_fill(0, d["order"][:1], 0.3), a=lin()),
    "slice_scatter": lambda: Step(lambda s, h, d: h.slice_scatter(s.a(h)[:1], 0, 0, 1), a=lin()),
    "scatter": lambda: Step(
        lambda s, h, d: h.scatter(1, d["pick"][:, :1, None].expand(-1, 1, D), s.a(h)[:, :1]), a=lin()
    ),
    "triangle": lambda: Step(lambda s, h, d: torch.tril(s.a(h)) + 0.1 * h, a=lin()),
    "kron": lambda: Step(lambda s, h, d: h @ torch.kron(s.u, s.v), u=par(1, D), v=par(D, 1)),
    "minimum": lambda: Step(lambda s, h, d: torch.minimum(s.a(h), h + 0.2), a=lin()),
    "atan2": lambda: Step(lambda s, h, d: torch.atan2(s.a(h), 2 + h.square()), a=lin()),
    "lerp": lambda: Step(lambda s, h, d: torch.lerp(h, s.a(h), s.w), a=lin(), w=par(D)),
    "addcmul": lambda: Step(lambda s, h, d: torch.addcmul(h, s.a(h), s.w, value=0.5), a=lin(), w=par(T, D)),
    "prelu": lambda: Step(lambda s, h, d: F.prelu(s.a(h), s.w), a=lin(), w=par(T)),
    "glu": lambda: Step(lambda s, h, d: F.glu(s.a(h), -1), a=nn.Linear(D, 2 * D)),
    "log_softmax": lambda: Step(lambda s, h, d: F.log_softmax(s.a(h), -1), a=lin()),
    "roll_positions": lambda: Step(lambda s, h, d: s.a(h).roll(1, 1), a=lin()),
    "flip_features": lambda: Step(lambda s, h, d: s.a(h.flip(-1)), a=lin()),
    "cumsum": lambda: Step(lambda s, h, d: s.a(h).cumsum(1), a=lin()),
    "cumprod": lambda: Step(lambda s, h, d: torch.tanh(s.a(h)).cumprod(-1), a=lin()),
    "logcumsumexp": lambda: Step(lambda s, h, d: s.a(h).logcumsumexp(1), a=lin()),
    "logsumexp": lambda: Step(lambda s, h, d: h + s.a(h).logsumexp(-1, True), a=lin()),
    "softmax": lambda: Step(lambda s, h, d: s.a(h).softmax(1), a=lin()),
    "norm": lambda: Step(lambda s, h, d: h + s.a(h).norm(dim=-1, keepdim=True), a=lin()),
    "normalize": lambda: Step(lambda s, h, d: F.normalize(s.a(h), dim=-1), a=lin()),
    "prod": lambda: Step(lambda s, h, d: h + s.a(h).prod(1, True), a=lin()),
    "amax": lambda: Step(lambda s, h, d: h + s.a(h).amax(1, True), a=lin()),
    "variance": lambda: Step(lambda s, h, d: h + s.a(h).var(-1, keepdim=True), a=lin()),
    "pad_and_cut": lambda: Step(lambda s, h, d: F.pad(s.a(h), (1, 1))[..., :D], a=lin()),
    "unfold": lambda: Step(lambda s, h, d: s.a(F.pad(h, (1, 1)).unfold(-1, D, 1).mean(-1)), a=lin()),
    "diagonal": lambda: Step(lambda s, h, d: h + torch.einsum("ntdd->ntd", s.a(h)[..., None] * h[:, :, None]), a=lin()),
    "spectrum": lambda: Step(lambda s, h, d: padded(torch.fft.rfft(s.a(h)).abs(), D, -1), a=lin()),
    "complex_filter": lambda: Step(complex_filter, w=par(D // 2 + 1, 2)),
    "complex_phase": lambda: Step(lambda s, h, d: torch.polar(1 + h.square(), s.a(h)).real, a=lin()),
    "clamp": lambda: Step(lambda s, h, d: s.a(h).clamp(-0.8, 0.8) + 0.1 * h, a=lin()),
    "distances": lambda: Step(
        lambda s, h, d: h + (s.a(h)[:, :, None] - h[:, None]).square().sum(-1).sum(-1, True), a=lin()
    ),
    "in_place": lambda: Step(lambda s, h, d: s.a(h).mul_(0.5).tanh_(), a=lin()),
    "detached_branch": lambda: Step(lambda s, h, d: s.a(h) + h.detach() * s.w, a=lin(), w=par(D)),
}  # fmt: skip
