// Which keys a window holds, per axis: paperops/reference/local_attention.py, `axis`. Computed once a call.
//
// Rows of keys are staged one by one: as planes, one a channel, in which the keys that a slot's column b holds for queries
// j, j + 1, ... lie side by side from `offset[b]` on, whatever the stride, the dilation and the border. So columns of keys
// that are a stride apart are neighbours in a staged plane, and columns that no slot holds are left out.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

#include "../common/parallel.h"

namespace paperops::local_attention {

enum class Padding : int64_t { reflect = 0, zeros = 1, mask = 2, shift = 3 };

constexpr int64_t kRound = 16;  // lanes of the widest vectors
constexpr int64_t kNone = -1;   // a key outside the map

inline int64_t round_up(int64_t a) { return divide_up(a, kRound) * kRound; }

struct Window {
  int64_t kernel, stride, dilation;
  Padding padding;

  // The coordinate of the key in slot a of the query at `place`, a multiple of the stride; kNone outside the map.
  int64_t key(int64_t place, int64_t a, int64_t size) const {
    if (padding == Padding::shift) {
      const int64_t residue = place % dilation, count = divide_up(size - residue, dilation);
      const int64_t start = std::min(std::max<int64_t>(place / dilation - kernel / 2, 0), count - kernel);
      return (start + a) * dilation + residue;
    }
    return resolved(place + (a - kernel / 2) * dilation, size);
  }
  // The key at an unpadded coordinate.
  int64_t resolved(int64_t u, int64_t size) const {
    if (padding == Padding::reflect) {
      const int64_t folded = std::abs(u);
      return folded >= size ? 2 * (size - 1) - folded : folded;
    }
    return u >= 0 && u < size ? u : kNone;
  }
};

// The rows of one axis.
struct Rows {
  Rows(int64_t size, const Window& window)
      : size(size), queries(divide_up(size, window.stride)), kernel(window.kernel), keys(queries * kernel),
        lowest(queries), highest(queries) {
    int64_t high = 0;
    for (int64_t i = 0; i < queries; ++i) {
      for (int64_t a = 0; a < kernel; ++a) {
        const int64_t key = window.key(i * window.stride, a, size);
        keys[i * kernel + a] = key;
        high = std::max(high, key);
      }
      highest[i] = high;
    }
    int64_t low = size;
    for (int64_t i = queries - 1; i >= 0; --i) {
      for (int64_t a = 0; a < kernel; ++a) {
        const int64_t key = keys[i * kernel + a];
        low = key == kNone ? low : std::min(low, key);
      }
      lowest[i] = low;
    }
  }
  int64_t key(int64_t i, int64_t a) const { return keys[i * kernel + a]; }

  int64_t size, queries, kernel;
  std::vector<int64_t> keys;     // [queries, kernel]
  std::vector<int64_t> lowest;   // [queries]: the lowest row that this query or a later one needs
  std::vector<int64_t> highest;  // [queries]: the highest that this one or an earlier one needs
};

// Places place, place + 1, ... of a staged plane hold the columns source, source + step, ...
struct Run {
  int64_t place, count, source, step;
};

// The columns.
struct Columns {
  // Slots whose keys lie in one stretch of a plane, `length` places from `base` on: slots[n] begins at shifts[n] in it.
  struct Group {
    int64_t base, length;
    std::vector<int64_t> slots, shifts;
  };

  Columns(int64_t size, const Window& window)
      : size(size), queries(divide_up(size, window.stride)), padded(round_up(queries)), offset(window.kernel),
        first(window.kernel, 0), end(window.kernel, queries) {
    const int64_t kernel = window.kernel, stride = window.stride;
    std::vector<std::vector<int64_t>> held;  // by group, the column at each place
    if (window.padding == Padding::shift) {  // each slot has a stretch of its own: near a border they move differently
      for (int64_t b = 0; b < kernel; ++b) {
        groups.push_back({0, queries, {b}, {0}});
        held.emplace_back();
        for (int64_t j = 0; j < queries; ++j) {
          held.back().push_back(window.key(j * stride, b, size));
        }
      }
    } else {
      std::vector<int64_t> group_of(std::min(stride, kernel * window.dilation), kNone);
      const int64_t border = kernel / 2 * window.dilation;
      for (int64_t b = 0; b < kernel; ++b) {
        const int64_t phase = b * window.dilation % stride, shift = b * window.dilation / stride;
        if (group_of[phase] == kNone) {
          group_of[phase] = static_cast<int64_t>(groups.size());
          groups.push_back({0, 0, {}, {}});
          held.emplace_back();
        }
        Group& group = groups[group_of[phase]];
        group.slots.push_back(b);
        group.shifts.push_back(shift);
        group.length = std::max(group.length, queries + shift);
        reach = std::max(reach, shift);
        for (int64_t t = static_cast<int64_t>(held[group_of[phase]].size()); t < group.length; ++t) {
          held[group_of[phase]].push_back(window.resolved(t * stride + phase - border, size));
        }
        if (window.padding == Padding::mask) {
          const int64_t left = (kernel / 2 - b) * window.dilation, right = size - 1 + left;  // of j * stride, inclusive
          first[b] = std::min(left > 0 ? divide_up(left, stride) : 0, queries);
          end[b] = right < 0 ? 0 : std::min(right / stride + 1, queries);
        }
      }
    }
    for (size_t g = 0; g < groups.size(); ++g) {
      groups[g].base = plane;
      for (size_t n = 0; n < groups[g].slots.size(); ++n) {
        offset[groups[g].slots[n]] = plane + groups[g].shifts[n];
      }
      add_runs(held[g], plane);
      plane += padded + round_up(reach_of(groups[g]));
    }
  }

  int64_t size, queries;
  int64_t padded;               // queries, in whole vectors
  int64_t plane = 0;            // places of a staged plane
  int64_t reach = 0;            // the largest shift
  std::vector<int64_t> offset;  // [kernel]
  std::vector<int64_t> first, end;  // [kernel]: under Padding::mask the queries for which the slot is there
  std::vector<Group> groups;
  std::vector<Run> runs;  // places that no run holds are 0

 private:
  static int64_t reach_of(const Group& group) { return *std::max_element(group.shifts.begin(), group.shifts.end()); }

  void add_runs(const std::vector<int64_t>& held, int64_t base) {
    const int64_t count = static_cast<int64_t>(held.size());
    for (int64_t t = 0; t < count;) {
      if (held[t] == kNone) {
        ++t;
        continue;
      }
      const int64_t step = t + 1 < count && held[t + 1] != kNone ? held[t + 1] - held[t] : 1;
      int64_t last = t;
      while (last + 1 < count && held[last + 1] != kNone && held[last + 1] - held[last] == step) {
        ++last;
      }
      runs.push_back({base + t, last - t + 1, held[t], step});
      t = last + 1;
    }
  }
};

}  // namespace paperops::local_attention
