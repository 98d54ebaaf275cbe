"""A grid of tiny networks: each layer type, and each way of using a parameter, that the library must get right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

#: samples of a batch; also the sequence length of most inputs, so that shapes tell nothing
N = 5


class Model(nn.Module):
    """A network of named parts and a function ``call(self, x)``."""

    def __init__(self, call: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(self, *args, **kwargs)


@dataclass(frozen=True)
class Case:
    """One network of the grid.

    Args:
        build: makes it, in float32 and evaluation mode; the output is ``[N, 3]`` unless the name says otherwise.
        inputs: number of samples → inputs.
        coupled: whether an output depends on other samples of the batch.
        by_differences: whether PyTorch's own double backward is wrong or absent, so that the Hessian's
            oracle takes finite differences.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], Any]
    coupled: bool = False
    by_differences: bool = False


def make(
    name: str, device: Any = "cpu", dtype: torch.dtype = torch.float64, samples: int = N
) -> tuple[nn.Module, Any]:
    """The network ``name`` and inputs for it, the same on every call."""
    case = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # building may be deprecated; using must be silent
            model = case.build().to(device, dtype).eval()
        for name_, p in model.named_parameters():
            if p.ndim < 2 and not name_.startswith("fixed"):  # ones and zeros hide errors
                p.data += 0.3 * torch.randn(p.shape).to(p)
        for buffer_name, b in model.named_buffers():
            if "running_mean" in buffer_name:
                b += 0.3
            if "running_var" in buffer_name:
                b *= 1.7
        x = _to(case.inputs(samples), device, dtype)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # what PyTorch says once about a layer is not ours
            model(**x) if isinstance(x, Mapping) else model(x)
    return model, x


def _to(x: Any, device: Any, dtype: torch.dtype) -> Any:
    if isinstance(x, Mapping):
        return {key: _to(value, device, dtype) for key, value in x.items()}
    return x.to(device, dtype) if x.is_floating_point() else x.to(device)


def rows(*shape: int) -> Callable[[int], Tensor]:
    """Normal inputs [n, *shape]."""
    return lambda n: torch.randn(n, *shape)


def tokens(*shape: int) -> Callable[[int], Tensor]:
    """Tokens below 6, [n, *shape], with repeats."""
    return lambda n: torch.randint(6, (n, *shape))


def par(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def headed(layer: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


def attention(call: Callable[..., Any], **options: Any) -> nn.Module:
    return Model(call, att=nn.MultiheadAttention(4, 2, **options), head=nn.Linear(4, 3))


def recurrent(kind: type[nn.Module], batch_first: bool = True, **options: Any) -> nn.Module:
    width = 3 * (2 if options.get("bidirectional") else 1)

    def call(s: Any, x: Tensor) -> Tensor:
        if batch_first:
            return s.head(s.rnn(x)[0].mean(1))
        return s.head(s.rnn(x.transpose(0, 1))[0].mean(0))

    return Model(call, rnn=kind(4, 3, batch_first=batch_first, **options), head=nn.Linear(width, 3))


class Doubled(nn.Module):
    """A custom parametrisation that is not linear."""

    def forward(self, w: Tensor) -> Tensor:
        return w * (1 + w.square().mean())


def parametrised() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


def tied_language_model() -> nn.Module:
    model = Model(
        lambda s, x: s.out(torch.tanh(s.mix(s.emb(x)))).mean(1)[:, :3],
        emb=nn.Embedding(6, 4),
        mix=nn.Linear(4, 4),
        out=nn.Linear(4, 6, bias=False),
    )
    model.out.weight = model.emb.weight
    return model


def windows(s: Any, x: Tensor) -> Tensor:
    """Swin: [n, 4, 4, c] into windows [n·4, 2·2, c], attention there, and back."""
    n, c = x.shape[0], x.shape[-1]
    w = x.view(n, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n * 4, 4, c)
    q, k, v = s.qkv(w).chunk(3, -1)
    w = s.norm(w + s.bias[:c] + torch.softmax(q @ k.mT + s.relative, -1) @ v)
    x = w.view(n, 2, 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, 4, 4, c)
    return s.head(x.mean((1, 2)))


def gpt2() -> nn.Module:
    transformers = pytest.importorskip(
        "transformers"
    )  # absent on a bare GPU machine: skipped, and counted

    config = transformers.GPT2Config(
        vocab_size=6,
        n_positions=8,
        n_embd=4,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")

    config = transformers.BertConfig(
        vocab_size=6,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=5,
        max_position_embeddings=8,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


def _bert_inputs(n: int) -> dict[str, Tensor]:
    mask = torch.ones(n, 5, dtype=torch.long)
    mask[0, 3:] = 0
    return {"input_ids": torch.randint(6, (n, 5)), "attention_mask": mask}


def _sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[0].bias.requires_grad_(False)
    return model


def _dead() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    nn.init.constant_(model[0].bias, -100.0)
    return model


S = _sequence
SEQ = rows(N, 4)
CASES: dict[str, Case] = {
    # plain
    "linear": Case(lambda: nn.Linear(4, 3), rows(4)),
    "mlp": Case(lambda: S(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), rows(4)),
    "mlp_inplace": Case(lambda: S(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3), nn.SiLU(inplace=True)), rows(4)),
    "mlp_dead": Case(_dead, rows(4)),
    "mlp_on_sequence": Case(lambda: S(nn.Linear(4, 3), nn.GELU(), nn.Flatten(), nn.Linear(3 * N, 3)), SEQ),
    "bilinear": Case(lambda: Model(lambda s, x: s.b(x, x.tanh()), b=nn.Bilinear(4, 4, 3)), rows(4)),
    "prelu": Case(lambda: S(nn.Linear(4, 5), nn.PReLU(), nn.Linear(5, 5), nn.PReLU(5), nn.Linear(5, 3)), rows(4)),
    # convolution
    "conv1d": Case(lambda: headed(nn.Conv1d(2, 3, 3, dilation=2, padding="same", padding_mode="circular"), 21), rows(2, 7)),
    "conv1d_bare": Case(lambda: headed(nn.Conv1d(3, 4, 2, bias=False), 16), rows(3, N)),
    "conv2d": Case(lambda: headed(nn.Conv2d(2, 3, 3, stride=2, padding=1), 27), rows(2, 5, 5)),
    "conv2d_groups": Case(lambda: headed(nn.Conv2d(4, 4, (3, 2), groups=2, stride=(1, 2), padding=(2, 0)), 40), rows(4, 3, 5)),
    "conv2d_depthwise": Case(lambda: headed(nn.Conv2d(2, 4, 3, groups=2, dilation=(1, 2)), 12), rows(2, 5, 5)),
    "conv2d_reflect": Case(lambda: headed(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", stride=3), 12), rows(2, 5, 5)),
    "conv2d_replicate": Case(lambda: headed(nn.Conv2d(2, 3, 2, padding=1, padding_mode="replicate"), 48), rows(2, 3, 3)),
    "conv2d_pointwise": Case(lambda: headed(nn.Conv2d(3, 2, 1), 8), rows(3, 2, 2)),
    "conv2d_uneven_stride": Case(lambda: headed(nn.Conv2d(1, 2, 2, stride=3), 8), rows(1, 6, 6)),
    "conv3d": Case(lambda: headed(nn.Conv3d(2, 2, 2), 16), rows(2, 3, 3, 3)),
    "conv2d_same_even": Case(lambda: headed(nn.Conv2d(2, 2, 2, padding="same"), 18), rows(2, 3, 3)),
    "transposed1d": Case(lambda: headed(nn.ConvTranspose1d(3, 2, 3, stride=2), 18), rows(3, 4)),
    "transposed2d": Case(
        lambda: headed(nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2), 64), rows(4, 2, 2)
    ),
    "transposed2d_dilated": Case(lambda: headed(nn.ConvTranspose2d(2, 3, 2, dilation=2, padding=1), 12), rows(2, 2, 2)),
    "transposed3d": Case(lambda: headed(nn.ConvTranspose3d(2, 2, 2, bias=False), 54), rows(2, 2, 2, 2)),
    "conv_on_sequence_by_transpose": Case(
        lambda: Model(lambda s, x: s.head(torch.tanh(s.conv(x.transpose(1, 2))).mean(2)), conv=nn.Conv1d(4, 3, 2), head=nn.Linear(3, 3)), SEQ
    ),
    "cnn": Case(
        lambda: S(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        rows(1, 6, 6),
    ),
    # normalisation
    "layer_norm": Case(lambda: S(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)), rows(4)),
    "layer_norm_2d": Case(lambda: S(nn.LayerNorm((N, 4)), nn.Flatten(), nn.Tanh(), nn.Linear(20, 3)), SEQ),
    "layer_norm_no_bias": Case(lambda: S(nn.Linear(4, 4), nn.LayerNorm(4, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)), SEQ),
    "group_norm": Case(lambda: S(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)), rows(2, 3, 3)),
    "rms_norm": Case(lambda: S(nn.Linear(4, 4), nn.RMSNorm(4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)), SEQ),
    "batch_norm_1d": Case(lambda: S(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)), rows(4)),
    "batch_norm_2d": Case(lambda: S(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)), rows(2, 3, 3)),
    "instance_norm": Case(lambda: S(nn.Conv1d(2, 3, 2), nn.InstanceNorm1d(3, affine=True), nn.Tanh(), nn.Flatten(), nn.Linear(9, 3)), rows(2, 4)),
    "local_response_norm": Case(lambda: S(nn.Conv1d(2, 3, 2), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(9, 3)), rows(2, 4)),
    # look-up
    "embedding": Case(lambda: S(nn.Embedding(6, 4, padding_idx=2), nn.Flatten(), nn.Tanh(), nn.Linear(20, 3)), tokens(N)),
    "embedding_of_one_token": Case(lambda: S(nn.Embedding(6, 4), nn.Tanh(), nn.Linear(4, 3)), tokens()),
    "embedding_plus_position": Case(
        lambda: Model(lambda s, x: s.head(torch.tanh(s.tok(x) + s.pos(torch.arange(x.shape[1], device=x.device))).mean(1)), tok=nn.Embedding(6, 4), pos=nn.Embedding(N, 4), head=nn.Linear(4, 3)),
        tokens(N),
    ),
    # attention
    "attention": Case(lambda: attention(lambda s, x: s.head(s.att(x, x, x, need_weights=False)[0].mean(1)), batch_first=True), SEQ),
    "attention_weights": Case(lambda: attention(lambda s, x: s.head(s.att(x, x, x, need_weights=True)[0].mean(1)), batch_first=True), SEQ),
    "attention_sequence_first": Case(
        lambda: attention(lambda s, x: s.head(s.att(*[x.transpose(0, 1)] * 3, need_weights=False)[0].mean(0))), SEQ
    ),
    "attention_weights_sequence_first": Case(lambda: attention(lambda s, x: s.head(s.att(*[x.transpose(0, 1)] * 3)[0].mean(0))), SEQ),
    "attention_cross": Case(
        lambda: attention(lambda s, x: s.head(s.att(x, x[..., :3], torch.cat([x, x[..., :1]], -1), need_weights=False)[0].mean(1)), batch_first=True, kdim=3, vdim=5), SEQ
    ),
    "attention_key_value": Case(lambda: attention(lambda s, x: s.head(s.att(x, 2 * x, x + 1)[0].mean(1)), batch_first=True), SEQ),
    "attention_bias_kv": Case(lambda: attention(lambda s, x: s.head(s.att(x, x, x)[0].mean(1)), batch_first=True, add_bias_kv=True), SEQ),
    "scaled_dot_product_attention": Case(
        lambda: Model(
            lambda s, x: s.head(F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x), is_causal=True).mean(1)),
            q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 4), head=nn.Linear(4, 3),
        ),
        SEQ,
    ),
    "encoder_layer": Case(lambda: S(nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Flatten(), nn.Linear(20, 3)), SEQ),
    "encoder_layer_norm_first": Case(
        lambda: Model(lambda s, x: s.head(s.enc(x.transpose(0, 1)).mean(0)), enc=nn.TransformerEncoderLayer(4, 2, 5, norm_first=True, activation="gelu"), head=nn.Linear(4, 3)), SEQ
    ),
    "swin_windows": Case(
        lambda: Model(windows, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), relative=par(4, 4), bias=par(4), head=nn.Linear(4, 3)), rows(4, 4, 4)
    ),
    # recurrence
    "lstm": Case(lambda: recurrent(nn.LSTM), SEQ),
    "lstm_bidirectional_two_layers": Case(lambda: recurrent(nn.LSTM, num_layers=2, bidirectional=True), SEQ),
    "lstm_sequence_first": Case(lambda: recurrent(nn.LSTM, batch_first=False), SEQ),
    "lstm_projected": Case(lambda: Model(lambda s, x: s.rnn(x)[0][:, -1], rnn=nn.LSTM(4, 4, proj_size=3, batch_first=True)), SEQ),
    "gru": Case(lambda: recurrent(nn.GRU, bidirectional=True), SEQ),
    "gru_sequence_first": Case(lambda: recurrent(nn.GRU, batch_first=False, num_layers=2), SEQ),
    "rnn": Case(lambda: recurrent(nn.RNN, nonlinearity="tanh"), SEQ),
    "rnn_no_bias": Case(lambda: recurrent(nn.RNN, bias=False, batch_first=False), SEQ),
    "lstm_cell": Case(lambda: Model(lambda s, x: s.head(s.cell(x[:, 1], s.cell(x[:, 0]))[0]), cell=nn.LSTMCell(4, 3), head=nn.Linear(3, 3)), SEQ),
    # shared, raw, derived, functional
    "tied": Case(tied_language_model, tokens(N)),
    "tied_square": Case(lambda: Model(lambda s, x: (torch.tanh(F.embedding(x, s.w)) @ s.w.t()).mean(1)[:, :3], w=par(6, 6)), tokens(N)),
    "tied_square_untransposed": Case(lambda: Model(lambda s, x: (torch.tanh(F.embedding(x, s.w)) @ s.w).mean(1)[:, :3], w=par(6, 6)), tokens(N)),
    "tied_with_padding": Case(
        lambda: Model(lambda s, x: (torch.tanh(F.embedding(x, s.w, padding_idx=2)) @ s.w.t()).mean(1)[:, :3], w=par(6, 4)), tokens(N)
    ),
    "tied_twice": Case(
        lambda: Model(lambda s, x: (torch.tanh(F.embedding(x, s.w) + F.embedding(x.flip(1), s.w)) @ s.w.t() @ s.w @ s.w.t()).mean(1)[:, :3], w=par(6, 4)), tokens(N)
    ),
    "tied_from_both_sides": Case(
        lambda: Model(lambda s, x: (torch.tanh(F.embedding(x, s.w)) @ s.w + (s.w @ x.to(s.w.dtype).t()).t()[:, None]).mean(1)[:, :3], w=par(6, 6)), lambda n: torch.randint(6, (n, 6))
    ),
    "reused": Case(lambda: Model(lambda s, x: s.head(torch.tanh(s.a(torch.tanh(s.a(x))))), a=nn.Linear(4, 4), head=nn.Linear(4, 3)), rows(4)),
    "tied_transposed": Case(lambda: Model(lambda s, x: torch.tanh(x @ s.w) @ s.w.t()[:, :3], w=par(4, 5)), rows(4)),
    "siamese": Case(lambda: Model(lambda s, x: s.head(torch.tanh(s.a(x[:, 0])) * s.a(x[:, 1])), a=nn.Linear(4, 4), head=nn.Linear(4, 3)), SEQ),
    "raw_parameters": Case(
        lambda: Model(
            lambda s, x: (torch.tanh(torch.cat([s.cls.expand(len(x), -1, -1), x * s.scale + s.pos], 1)) @ s.w).mean(1) / (1 + s.scale.sum() ** 2),
            w=par(4, 3), pos=par(N, 4), cls=par(1, 1, 4), scale=par(4), unused=par(2),
        ),
        SEQ,
    ),
    "scalar_parameter": Case(lambda: Model(lambda s, x: s.t.exp() * s.a(x) - s.u * 2 + s.u**2, a=nn.Linear(4, 3), t=par(), u=par()), rows(4)),
    "scalar_scale": Case(lambda: Model(lambda s, x: s.a(x) * s.t + s.u, a=nn.Linear(4, 3), t=par(), u=par()), rows(4)),
    "rearranged_into_the_output": Case(lambda: Model(lambda s, x: torch.cat([s.w.t(), s.a(x)[:, 1:]], 1), a=nn.Linear(4, 3), w=par(1, N)), rows(4), coupled=True),
    "subtraction_and_division": Case(lambda: Model(lambda s, x: s.a(x - s.m) / (2 + s.d**2) - s.e / 3, a=nn.Linear(4, 3), m=par(4), d=par(3), e=par(3)), rows(4)),
    "layer_scale": Case(lambda: Model(lambda s, x: s.a(x + s.gamma * torch.tanh(s.b(x))), a=nn.Linear(4, 3), b=nn.Linear(4, 4), gamma=par(4)), rows(4)),
    "low_rank": Case(lambda: Model(lambda s, x: F.linear(torch.tanh(x), s.a.weight + 0.5 * s.B @ s.A, s.a.bias), a=nn.Linear(4, 3), A=par(2, 4), B=par(3, 2)), rows(4)),
    "functional_on_sequence": Case(lambda: Model(lambda s, x: F.linear(torch.tanh(F.layer_norm(x, (4,), s.g)), s.w, s.b).mean(1), g=par(4), w=par(3, 4), b=par(3)), SEQ),
    "einsum": Case(lambda: Model(lambda s, x: torch.einsum("nti,io->nto", x, s.w).tanh().mean(1), w=par(4, 3)), SEQ),
    "einsum_heads": Case(lambda: Model(lambda s, x: torch.einsum("nti,hio->nhto", x, s.w).tanh().mean((1, 2)), w=par(2, 4, 3)), SEQ),
    "bmm": Case(lambda: Model(lambda s, x: torch.bmm(x, s.w.expand(len(x), -1, -1)).tanh().mean(1), w=par(4, 3)), SEQ),
    "bmm_of_experts": Case(lambda: Model(lambda s, x: torch.bmm(x.transpose(0, 1), s.w).tanh().mean(0), w=par(N, 4, 3)), SEQ),
    "baddbmm": Case(lambda: Model(lambda s, x: torch.baddbmm(s.b, x.transpose(0, 1), s.w).tanh().mean(0), b=par(N, 1, 3), w=par(N, 4, 3)), SEQ),
    "matrix_from_the_left": Case(lambda: Model(lambda s, x: (s.w @ x.t()).t().tanh(), w=par(3, 4)), rows(4)),
    "matrix_vector": Case(lambda: Model(lambda s, x: torch.stack([(x[:, i] @ s.w[i]) for i in range(3)], 1), w=par(3, 4)), SEQ),
    "addmm_scaled": Case(lambda: Model(lambda s, x: torch.addmm(s.b, x, s.w, beta=0.5, alpha=2.0).tanh(), w=par(4, 3), b=par(3)), rows(4)),
    "indexed_parameter": Case(lambda: Model(lambda s, x: s.table[x].mean(1).tanh(), table=par(6, 3)), tokens(N)),
    "sliced_parameter": Case(lambda: Model(lambda s, x: x @ s.w[::2, 1:4] + torch.tanh(x @ s.w[1::2, :3]) + s.w[3, 2:], w=par(8, 5)), rows(4)),
    "functional_call": Case(lambda: Model(lambda s, x: torch.func.functional_call(s.a, {k: 2 * v for k, v in s.a.named_parameters()}, (x,)), a=S(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))), rows(4)),
    "parametrised": Case(parametrised, rows(4)),
    "weight_norm": Case(lambda: S(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)), rows(4), by_differences=True),
    "weight_norm_dim_1": Case(lambda: S(parametrizations.weight_norm(nn.Linear(4, 4), dim=1), nn.Tanh(), nn.Linear(4, 3)), rows(4), by_differences=True),
    "weight_norm_whole": Case(lambda: S(parametrizations.weight_norm(nn.Linear(4, 4), dim=None), nn.Tanh(), nn.Linear(4, 3)), rows(4), by_differences=True),
    "weight_norm_conv": Case(lambda: headed(parametrizations.weight_norm(nn.Conv2d(2, 3, 2)), 12), rows(2, 3, 3), by_differences=True),
    "weight_norm_by_hook": Case(lambda: S(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)), rows(4), by_differences=True),
    "orthogonal": Case(lambda: S(parametrizations.orthogonal(nn.Linear(4, 4), "weight", "matrix_exp", use_trivialization=False), nn.Tanh(), nn.Linear(4, 3)), rows(4)),
    "spectral_norm": Case(lambda: S(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)), rows(4)),
    "frozen": Case(_frozen, rows(4)),
    "unused": Case(lambda: Model(lambda s, x: s.a(x), a=nn.Linear(4, 3), b=nn.Linear(2, 2)), rows(4)),
    # layouts that shapes do not tell
    "sequence_first_inside": Case(
        lambda: Model(lambda s, x: s.head(s.norm(torch.tanh(s.a(x.transpose(0, 1))))).mean(0), a=nn.Linear(4, 5), norm=nn.LayerNorm(5), head=nn.Linear(5, 3)), SEQ
    ),
    "merged_sequence_first": Case(
        lambda: Model(lambda s, x: torch.tanh(s.a(x.transpose(0, 1).reshape(-1, 4))).view(x.shape[1], x.shape[0], 4).mean(0) @ s.w, a=nn.Linear(4, 4), w=par(4, 3)), SEQ
    ),
    "merged_batch_first": Case(lambda: Model(lambda s, x: torch.tanh(s.a(x.flatten(0, 1))).unflatten(0, (-1, x.shape[1])).mean(1), a=nn.Linear(4, 3)), SEQ),
    "channels_last": Case(lambda: headed(nn.Conv2d(2, 3, 2), 12), lambda n: torch.randn(n, 2, 3, 3).to(memory_format=torch.channels_last)),
    "two_branches": Case(lambda: Model(lambda s, x: s.a(x) * torch.sigmoid(s.b(x)), a=nn.Linear(4, 3), b=nn.Linear(4, 3)), rows(4)),
    "convolution_as_batch_of_patches": Case(lambda: Model(lambda s, x: s.head(s.conv(x.reshape(-1, 1, 2, 2)).reshape(len(x), -1).tanh()), conv=nn.Conv2d(1, 2, 2), head=nn.Linear(8, 3)), rows(16)),
    "python_loop_over_samples": Case(lambda: Model(lambda s, x: torch.stack([s.a(row) for row in x]).tanh() @ s.w, a=nn.Linear(4, 4), w=par(4, 3)), rows(4)),
    # samples that see each other
    "centred_over_the_batch": Case(lambda: Model(lambda s, x: (lambda z: z - 0.5 * z.mean(0))(torch.tanh(s.a(x))), a=nn.Linear(4, 3)), rows(4), coupled=True),
    "attention_over_samples": Case(lambda: Model(lambda s, x: torch.softmax(s.q(x) @ s.k(x).t(), -1) @ s.v(x), q=nn.Linear(4, 4), k=nn.Linear(4, 4), v=nn.Linear(4, 3)), rows(4), coupled=True),
    "neighbours": Case(lambda: Model(lambda s, x: s.a(x) + s.b(torch.tanh(x.roll(1, 0))), a=nn.Linear(4, 3), b=nn.Linear(4, 3)), rows(4), coupled=True),
    "reversed_batch": Case(lambda: Model(lambda s, x: s.a(torch.tanh(s.b(x)).flip(0)), a=nn.Linear(4, 3), b=nn.Linear(4, 4)), rows(4), coupled=True),
    # Hugging Face, mapping batches
    "bert": Case(bert, _bert_inputs),
    # outputs of other shapes: [N, 3, 2, 2], [N, 3, T], [N, T, 6]
    "image_logits": Case(lambda: S(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Conv2d(3, 3, 1)), rows(2, 3, 3)),
    "sequence_logits": Case(lambda: Model(lambda s, x: s.a(torch.tanh(s.b(x))).transpose(1, 2), a=nn.Linear(4, 3), b=nn.Linear(4, 4)), SEQ),
    "gpt2": Case(gpt2, lambda n: {"input_ids": torch.randint(6, (n, N))}),
}  # fmt: skip

#: networks with one output per class
CLASSIFIERS = [name for name in CASES if name not in ("image_logits", "sequence_logits", "gpt2")]

#: (network, loss): every network once, and one of each kind with an unbounded residual
GRID = [(name, "ce") for name in CLASSIFIERS] + [
    (name, "mse") for name in ("mlp_inplace", "conv2d", "transposed2d", "group_norm", "embedding", "encoder_layer", "lstm", "tied", "raw_parameters", "low_rank", "attention_over_samples")
]  # fmt: skip
