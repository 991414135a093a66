// Moving held maps by whole cells, when the picture has moved under the camera.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "pool.h"
#include "state_parts.h"

namespace sightline {

namespace {

// One image of cells: rows of `width` cells of `cell` bytes. The new cell (y, x) takes what (y + dy, x + dx) held; others keep theirs.
struct Plane {
  Raw* data;
  int h, w;
  int64_t cell;
  int dy, dx;
};

// Rows y with y mod |dy| == chain, in the order in which none is overwritten before it is read.
void move_chain(const Plane& p, int chain) {
  const int columns = p.w - std::abs(p.dx);
  if (columns <= 0) return;
  const int64_t line = p.w * p.cell, bytes = columns * p.cell;
  const int64_t to = std::max(0, -p.dx) * p.cell, from = std::max(0, p.dx) * p.cell;
  auto row = [&](int y) { std::memmove(p.data + y * line + to, p.data + (y + p.dy) * line + from, (size_t)bytes); };
  if (p.dy == 0) {
    row(chain);
  } else if (p.dy > 0) {
    for (int y = chain; y + p.dy < p.h; y += p.dy) row(y);
  } else {
    for (int y = p.h - 1 - chain; y + p.dy >= 0; y += p.dy) row(y);
  }
}

// Chains that may run beside each other: all rows where rows stay, else one per row that is overwritten first.
int chains(const Plane& p) { return p.dy == 0 ? (p.dx ? p.h : 0) : std::min(std::abs(p.dy), p.h); }

}  // namespace

void State::shift(const std::vector<MapShift>& maps, int dy, int dx) {
  for (const Mask& need : needed)
    if (need.rows) throw std::invalid_argument("shift: not with an area");
  std::vector<Plane> planes;
  const int64_t element = program->k->element;
  for (const MapShift& m : maps) {
    if (m.storage < 0 || m.storage >= (int)storage.size() || (int64_t)m.n * m.h * m.w * m.ld > program->storages[(size_t)m.storage])
      throw std::invalid_argument("shift: a map does not fit its storage");
    for (int n = 0; n < m.n; ++n)
      planes.push_back({storage[(size_t)m.storage] + (int64_t)n * m.h * m.w * m.ld * element, m.h, m.w, m.ld * element, m.dy, m.dx});
  }
  const Tensor& t = program->tensors[(size_t)program->steps.at(0).out];
  for (int i = 0; i < t.n * t.c; ++i)
    planes.push_back({reinterpret_cast<Raw*>(held_frame_.data) + (int64_t)i * t.h * t.w * element, t.h, t.w, element, dy, dx});
  std::vector<std::pair<int, int>> items;  // (plane, chain)
  for (int i = 0; i < (int)planes.size(); ++i)
    for (int c = 0; c < chains(planes[(size_t)i]); ++c) items.emplace_back(i, c);
  Pool::instance().run((int)items.size(), [&](int i, int) {
    const auto [plane, chain] = items[(size_t)i];
    move_chain(planes[(size_t)plane], chain);
  });
}

void State::expire(int step, int dy, int dx, const uint8_t* rows, const uint8_t* cols) {
  const Tensor& t = program->tensors[(size_t)program->steps.at((size_t)step).out];
  Mask& old = stale[(size_t)step];
  if (!old.rows) old.shape(sites[(size_t)step].rows, sites[(size_t)step].width);
  if (old.count)
    for (int n = 0; n < t.n; ++n) {
      const Plane p{old.bits.data() + (size_t)n * t.h * t.w, t.h, t.w, 1, dy, dx};
      for (int c = 0; c < chains(p); ++c) move_chain(p, c);
    }
  old.count = 0;
  for (int r = 0; r < old.rows; ++r) {
    uint8_t* bits = old.bits.data() + (size_t)r * old.width;
    if (rows[r % t.h]) std::memset(bits, 1, (size_t)old.width);
    else program->k->or_into(cols, bits, old.width);
    const int64_t n = program->k->count(bits, old.width);
    old.row_any[(size_t)r] = n > 0;
    old.count += n;
  }
}

}  // namespace sightline
