// Transposing a block of W x W float32 values in registers, for files isa_*.cpp. Internal linkage, as isa_vectors.h.
#pragma once
#include <cstddef>
#include <utility>

#include "isa_vectors.h"

namespace sightline {
namespace {

template <int S, size_t... K>
SL_INLINE VF first_halves(VF a, VF b, std::index_sequence<K...>) {
  return __builtin_shufflevector(a, b, (int)((K & S) ? W + K - S : K)...);
}
template <int S, size_t... K>
SL_INLINE VF second_halves(VF a, VF b, std::index_sequence<K...>) {
  return __builtin_shufflevector(a, b, (int)((K & S) ? W + K : K + S)...);
}
// Exchanges the off-diagonal blocks of size S of every 2S x 2S block.
template <int S>
SL_INLINE void exchange(VF (&v)[W]) {
  constexpr auto lanes = std::make_index_sequence<W>{};
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) {
    if (i & S) continue;
    const VF a = v[i], b = v[i + S];
    v[i] = first_halves<S>(a, b, lanes);
    v[i + S] = second_halves<S>(a, b, lanes);
  }
}
SL_INLINE void transpose(VF (&v)[W]) {
  exchange<1>(v);
  exchange<2>(v);
  if constexpr (W > 4) exchange<4>(v);
  if constexpr (W > 8) exchange<8>(v);
}

}  // namespace
}  // namespace sightline
