// Constants and small helpers that the files of State share.
#pragma once
#include <algorithm>

#include "program.h"

namespace sightline {

constexpr int kChunk = 96;                        // pixels that share one pass over a weight panel
constexpr int64_t kSmallWeights = 400 * 1024;     // bytes: below this, weights stay in L2 whatever the loop order
constexpr double kBusy = 0.7;                     // share of a map from which a step counts as busy
constexpr uint8_t kLookAgain = 8;                 // frames for which a busy step publishes without comparing
constexpr int64_t kSerialWork = 200 * 1000;       // multiply-accumulates below which threads do not pay

template <class T, class A>
static inline void grow(std::vector<T, A>& v, size_t n) {
  if (v.size() < n) v.resize(n);
}
static inline void grow(Aligned& a, size_t floats) {
  if (a.size < floats) a = Aligned(floats);
}
static inline void mark(uint8_t& flag) { __atomic_store_n(&flag, (uint8_t)1, __ATOMIC_RELAXED); }

}  // namespace sightline
