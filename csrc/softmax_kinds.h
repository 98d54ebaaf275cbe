#pragma once

namespace curvext {

// What a sweep over the classes of each position forms; p = softmax(z). docs/kernels.md has the formulas.
enum class Softmax { hessian, root, root_t, residual, mass_residual, sample };

// Whether there are vectors u that an inner product is taken with.
template <Softmax kind>
constexpr bool kDots = kind == Softmax::hessian || kind == Softmax::root || kind == Softmax::root_t;
// Whether that product is taken relative to the u of the likeliest class.
template <Softmax kind>
constexpr bool kRelative = kind == Softmax::hessian || kind == Softmax::root_t;
// Whether a value of u, or of the target's mass, stands beside each logit.
template <Softmax kind>
constexpr bool kReads = kDots<kind> || kind == Softmax::mass_residual;

}  // namespace curvext
