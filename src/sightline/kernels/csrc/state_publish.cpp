// How computed rows reach the held maps, and what counts as changed.
#include <cstring>

#include "state_parts.h"

namespace sightline {

Publish State::publisher(int step) {
  const Step& s = program->steps[(size_t)step];
  const Tensor& t = program->tensors[(size_t)s.out];
  Publish p = finishing(s, t.c, t.ld);
  if (s.residual >= 0) {
    p.residual = at(s.residual);
    p.residual_ld = program->tensors[(size_t)s.residual].ld;
    p.residual_after_act = s.residual_after_act;
  }
  p.threshold = threshold[(size_t)step];
  p.mode = fresh ? kAlways : p.threshold > 0 ? kWithin : kExact;
  // Where nearly everything changes, comparing costs more than it saves: publish whatever is computed, and look again now and then.
  if (busy[(size_t)step] && (double)sites[(size_t)step].count >= kBusy * reachable(step)) {
    if (--busy[(size_t)step]) p.mode = kAlways;
  } else {
    busy[(size_t)step] = 0;
  }
  p.norm = norm;
  p.held = at(s.out);
  return p;
}

// Called when a step has published all of its sites.
void State::note_density(int step, const Publish& pub) {
  if (pub.mode == kAlways) {  // they all changed
    const Mask& all = sites[(size_t)step];
    Mask& m = changed[(size_t)program->tensors[(size_t)program->steps[(size_t)step].out].mask];
    if (all.count == (int64_t)all.bits.size()) {
      m.fill();
      return;
    }
    for (size_t r = 0; r < (size_t)all.rows; ++r) {
      if (!all.row_any[r]) continue;
      const uint8_t* bits = all.bits.data() + r * (size_t)all.width;
      std::memcpy(m.bits.data() + r * (size_t)all.width, bits, (size_t)all.width);
      m.row_any[r] = program->k->count(bits, all.width) > 0;  // sites are known by row no better than that a row may hold some
    }
    m.count = all.count;
    return;
  }
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  if (t.h * t.w == 1) return;  // comparing a vector costs nothing, and publishing it may cost the whole map that reads it
  const double n = (double)changed[(size_t)t.mask].count;
  busy[(size_t)step] = n >= kBusy * reachable(step) && n >= 0.95 * (double)sites[(size_t)step].count ? kLookAgain : 0;
}

void State::finish(int step, const Publish& pub, float* rows, int ldr, const Site* list, int n, uint8_t* flags) {
  if (program->k->publish(pub, rows, ldr, list, n, flags)) mark_changed(step, pub, list, n, flags);
}

void State::mark_changed(int step, const Publish& pub, const Site* list, int n, const uint8_t* flags) {
  if (pub.mode == kAlways) return;  // see note_density
  int total = 0;
  const Tensor& t = program->tensors[(size_t)program->steps[(size_t)step].out];
  Mask& m = changed[(size_t)t.mask];
  for (int i = 0, row = -1; i < n; ++i)
    if (flags[i]) {
      ++total;
      m.bits[(size_t)list[i].index] = 1;
      const int r = t.n == 1 ? list[i].y : list[i].index / m.width;
      if (r != row) mark(m.row_any[(size_t)(row = r)]);
    }
  __atomic_fetch_add(&m.count, (int64_t)total, __ATOMIC_RELAXED);
}

}  // namespace sightline
