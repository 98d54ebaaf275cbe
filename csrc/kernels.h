#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

// The native kernels of curvext, one declaration for every folder that implements them.
//
// Letters: N data, V backpropagated vectors per datum, S shared positions of a layer, I fan-in, O fan-out,
// K columns of a block of vectors, C classes, M positions of the output. The gradient of datum n along vector v is
// G_vn = sum_s g[v,n,s,:] a[n,s,:]^T, an O x I matrix that exists in registers or in a small workspace only, for a few
// data at a time.
//
// Types: float64, float32, bfloat16, float16. Products are accumulated in float32, for float64 inputs in float64;
// sums over data have that accumulation type. Every sum has a fixed order for a given number of threads.
#define CURVEXT_DECLARE_KERNELS                                                                                     \
  /* outer_cov: [D,D] = sum_m w[m] x[m,:] x[m,:]^T for x [M,D], symmetric to the last bit.                          \
     Cost: M D (D + t) flops with tiles of t columns, half of a plain product, and M D for the weights.             \
     Source: Kronecker factors, Martens, Grosse, "Optimizing neural networks with K-FAC", 2015. */                  \
  at::Tensor outer_cov(const at::Tensor& x, const at::Tensor& w);                                                   \
  /* outer_dot: [V,N,K] = <G_vn, W_k> = sum_s g[v,n,s,:]^T W_k a[n,s,:], W [K,O,I].                                 \
     Cost: the cheaper of 2 K N S O (I + V) flops and, with G formed, 2 V N (S + K) O I.                            \
     Source: first half of F v; Schraudolph, "Fast curvature matrix-vector products", 2002. */                      \
  at::Tensor outer_dot(const at::Tensor& a, const at::Tensor& g, const at::Tensor& W);                              \
  /* outer_gram: [N,N'] = <G_n, G'_m> of a [N,S,I], g [N,S,O] with a2 [N',S',I], g2 [N',S',O].                      \
     Cost: the cheaper of 2 N S N' S' (I + O) and 2 (N S + N' S' + N N') O I flops.                                 \
     Source: the kernel trick for the spectrum of F, e.g. Dangel, Tatzel, Hennig, "ViViT", 2022, section 3. */      \
  at::Tensor outer_gram(const at::Tensor& a, const at::Tensor& g, const at::Tensor& a2, const at::Tensor& g2);      \
  /* outer_norm: [V,N] = |G_vn|^2.                                                                                  \
     Cost: S = 1 N (I + V O), else the cheaper of 2 S^2 N (I + V O) and 2 V N S O I flops.                          \
     Source: Goodfellow, "Efficient per-example gradient computations", 2015; S > 1: Rochette, Manoel,              \
     Tramel, "Efficient per-example gradient computations in convolutional networks", 2019. */                      \
  at::Tensor outer_norm(const at::Tensor& a, const at::Tensor& g);                                                  \
  /* outer_square: [O,I] = sum_v sum_n (sum_s g[v,n,s,o] a[n,s,i])^2.                                               \
     Cost: 2 V N S O I flops, the floor of the plain product; S = 1 folds v first: 2 N O I.                         \
     Source: diagonal of the empirical Fisher, Dangel, Kunstner, Hennig, "BackPACK", 2020, section 3. */            \
  at::Tensor outer_square(const at::Tensor& a, const at::Tensor& g);                                                \
  /* outer_sum: [K,O,I] = sum_vn c[k,v,n] G_vn.                                                                     \
     Cost: the cheaper of K N S O (2 I + V) flops and, with G formed, 2 V N (S + K) O I.                            \
     Source: second half of F v; Schraudolph, "Fast curvature matrix-vector products", 2002. */                     \
  at::Tensor outer_sum(const at::Tensor& a, const at::Tensor& g, const at::Tensor& c);                              \
  /* mse_hessian_mm: [K,*z] = 2 w u: H_l u for the squared error l = w (f - y)^2, elementwise.                      \
     Cost: reads u and w once, writes once.                                                                         \
     Source: Schraudolph, "Fast curvature matrix-vector products", 2002, table 1. */                                \
  at::Tensor mse_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w);                         \
  /* mse_sample: [*z] = sqrt(2 w) e, e standard normal: the residual at a target drawn from exp(-l).                \
     Cost: writes once; a hash, and half a logarithm and a sine, for each output.                                   \
     Source: Box, Muller, "A note on the generation of random normal deviates", 1958. */                            \
  at::Tensor mse_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first);       \
  /* sigmoid_hessian_mm: [K,*z] = w p (1 - p) u, p = 1 / (1 + e^-z): H_l u for the binary cross-entropy.            \
     Cost: reads z, u and w once, writes once; one exponential per logit.                                           \
     Source: Schraudolph, "Fast curvature matrix-vector products", 2002, table 1. */                                \
  at::Tensor sigmoid_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w);                     \
  /* sigmoid_sample: [*z] = sqrt(w) (p - b), b = 1 with probability p.                                              \
     Cost: reads z and w once, writes once; an exponential and a hash per logit.                                    \
     Source: Martens, "New insights and perspectives on the natural gradient method", 2020, section 5. */           \
  at::Tensor sigmoid_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first);   \
  /* softmax_hessian_mm: [K,*z] = w p (u - <p,u>), p = softmax(z) along dim: H_l u for the cross-entropy.           \
     Cost: reads z and u once, writes once; 2 exponentials per logit at most.                                       \
     Source: Schraudolph, "Fast curvature matrix-vector products", 2002, table 1. */                                \
  at::Tensor softmax_hessian_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim);        \
  /* softmax_residual: [*z] = w p - t, the derivative of the cross-entropy. t is the target's mass, sum_c t_c = w:  \
     given, or spread + (w - sum spread) e_y for an index y. Cost: reads z and a given mass once, writes once; 2    \
     exponentials per logit at most. Source: Bridle, "Probabilistic interpretation of feedforward classification    \
     network outputs", 1990. */                                                                                     \
  at::Tensor softmax_residual(const at::Tensor& z, const at::Tensor& target, const at::Tensor& w,                   \
                              const std::optional<at::Tensor>& spread, int64_t dim);                                \
  /* softmax_root_mm: [K,*z] = S v = sqrt(w) (sqrt(p) v - p <sqrt(p),v>), S S^T = H_l.                              \
     Cost: that of softmax_hessian_mm, and a square root for each logit and pass.                                   \
     Source: Dangel, Kunstner, Hennig, "BackPACK", 2020, appendix A. */                                             \
  at::Tensor softmax_root_mm(const at::Tensor& z, const at::Tensor& v, const at::Tensor& w, int64_t dim);           \
  /* softmax_root_t_mm: [K,*z] = S^T u = sqrt(w p) (u - <p,u>).                                                     \
     Cost, source: those of softmax_root_mm. */                                                                     \
  at::Tensor softmax_root_t_mm(const at::Tensor& z, const at::Tensor& u, const at::Tensor& w, int64_t dim);         \
  /* softmax_sample: [*z] = sqrt(w) (p - e_y), y drawn from p by its counters (seed, draw, datum, position, class). \
     Cost: reads z once, writes once; 2 exponentials and a hash per logit.                                          \
     Source: Gumbel's maximum, e.g. Maddison, Tarlow, Minka, "A* sampling", 2014, section 2. */                     \
  at::Tensor softmax_sample(const at::Tensor& z, const at::Tensor& w, int64_t seed, int64_t draw, int64_t first,    \
                            int64_t dim);

namespace curvext::cpu {
CURVEXT_DECLARE_KERNELS
}

#ifdef CURVEXT_CUDA
namespace curvext::cuda {
CURVEXT_DECLARE_KERNELS
}
#endif
