// Where the samples of one axis lie, and which of them touch a pixel: paperops/reference/dynopool.py, `axis`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../common/parallel.h"

namespace paperops::dynopool {

// Tables end in so many more elements, so that whole vectors can be loaded at any of them.
constexpr int64_t kPad = 16;
// Samples that touch one pixel up to which there is a table of them by pixel.
constexpr int64_t kMostTouching = 12;

template <typename T>
struct Axis {
  static constexpr int64_t kWindow = 64 / static_cast<int64_t>(sizeof(T));  // lanes of the widest vectors

  // k samples a cell; `offset` of the first in its cell, `step` to the next; `origin` of pixels' centres.
  Axis(int64_t pixels, int64_t cells, double ratio, int64_t k, double offset, double origin, bool zeros)
      : pixels(pixels), cells(cells), k(k), pitch(cells + kPad), pixel_pitch(pixels + kPad), first(k * pitch),
        second(k * pitch), fraction(k * pitch), step(k * pitch), begin(pixel_pitch), count(pixel_pitch) {
    const double low = zeros ? -1 : 0, high = static_cast<double>(zeros ? pixels : pixels - 1);
    exact = true;
    for (int64_t t = 0; t < k; ++t) {
      for (int64_t i = 0; i < pitch; ++i) {
        const int64_t cell = std::min(i, cells - 1);
        const double steps = static_cast<double>(cell) + offset + 0.5 * static_cast<double>(t);
        const double unclamped = steps / ratio - origin;
        const bool inside = unclamped >= low && unclamped <= high;
        const double position = inside ? unclamped : unclamped > high ? high : low;  // NaN: low
        const double before = std::floor(position);
        const int64_t at = t * pitch + i;
        first.data()[at] = static_cast<int32_t>(before) + 1;
        second.data()[at] = static_cast<int32_t>(std::min(before + 1, high)) + 1;
        fraction.data()[at] = static_cast<T>(unclamped == unclamped ? position - before : unclamped);
        step.data()[at] = inside ? static_cast<T>(steps) : T{0};
        exact = exact && fraction.data()[at] == T{0};
      }
    }
    for (int64_t t = 0; t < k; ++t) {
      for (int64_t i = 0; i < cells; ++i) {
        const int64_t last = std::min(i + kWindow, cells) - 1;
        span = std::max<int64_t>(span, second.data()[t * pitch + last] - first.data()[t * pitch + i] + 1);
      }
    }
    reverse();
  }

  // Whether every sample lies on the centre of a pixel that no other touches.
  bool single() const { return exact && most <= 1; }

  // By number in order of position: sample e is t = e % k of cell e / k.
  int64_t samples() const { return k * cells; }
  int64_t at(int64_t e) const { return k == 2 ? (e & 1) * pitch + (e >> 1) : e; }

  int64_t pixels, cells, k;
  int64_t pitch, pixel_pitch;
  bool exact;        // whether all fractions are 0
  int64_t span = 1;  // pixels that kWindow cells reach, of one t

  // [k, pitch]. Numbers of pixels count from 1: 0 is the one before the map, pixels + 1 the one after it.
  Buffer<int32_t> first, second;
  Buffer<T> fraction;
  Buffer<T> step;  // what the position is of a = 1 / r, 0 where it is clamped

  // By pixel, which has its own number here: samples begin .. begin + count - 1 touch it.
  Buffer<int32_t> begin, count;  // [pixel_pitch]
  int64_t most = 0;              // the largest count
  // Where `most` is at most kMostTouching, [max(most, 1), pixel_pitch]: the samples and their weights; weight 0 for none.
  Buffer<int32_t> index{0};
  Buffer<T> weight{0};
  int64_t reverse_span = 1;  // samples that kWindow pixels reach

  // What sample e takes of a pixel, numbered from 1.
  T weight_of(int64_t e, int64_t pixel) const {
    const int64_t place = at(e);
    const T part = fraction.data()[place];
    return first.data()[place] == pixel ? 1 - part : second.data()[place] == pixel ? part : T{0};
  }

  // Samples that touch one of the pixels [low, high), their own numbers: [from, to).
  void touching(int64_t low, int64_t high, int64_t& from, int64_t& to) const {
    from = bound([&](int64_t e) { return second.data()[at(e)] < low + 1; });
    to = bound([&](int64_t e) { return first.data()[at(e)] < high + 1; });
  }

 private:
  // The number of samples, from the first on, for which this holds.
  template <class Holds>
  int64_t bound(const Holds& holds) const {
    int64_t low = 0, high = samples();
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      holds(middle) ? low = middle + 1 : high = middle;
    }
    return low;
  }

  void reverse() {
    const int64_t all = samples();
    int64_t from = 0, to = 0;
    for (int64_t p = 0; p < pixels; ++p) {
      while (from < all && second.data()[at(from)] < p + 1) {
        ++from;
      }
      while (from < all && weight_of(from, p + 1) == T{0} && first.data()[at(from)] < p + 1) {
        ++from;  // on the centre of the pixel before
      }
      to = std::max(to, from);
      while (to < all && first.data()[at(to)] <= p + 1) {
        ++to;
      }
      begin.data()[p] = static_cast<int32_t>(from);
      count.data()[p] = static_cast<int32_t>(to - from);
      most = std::max(most, to - from);
    }
    for (int64_t p = pixels; p < pixel_pitch; ++p) {
      begin.data()[p] = begin.data()[pixels - 1];
      count.data()[p] = 0;
    }
    if (most > kMostTouching) {
      return;
    }
    const int64_t rows = std::max<int64_t>(most, 1);  // one of weights 0 where all samples lie beyond the map
    index = Buffer<int32_t>(rows * pixel_pitch);
    weight = Buffer<T>(rows * pixel_pitch);
    for (int64_t number = 0; number < rows; ++number) {
      for (int64_t p = 0; p < pixel_pitch; ++p) {
        const int64_t start = std::min<int64_t>(begin.data()[p], all - 1), e = start + number;
        const bool there = number < count.data()[p];
        index.data()[number * pixel_pitch + p] = static_cast<int32_t>(there ? e : start);
        weight.data()[number * pixel_pitch + p] = there ? weight_of(e, p + 1) : T{0};
      }
    }
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t last = std::min(p + kWindow, pixels) - 1;
      const int64_t end = begin.data()[last] + std::max(count.data()[last], 1);
      reverse_span = std::max<int64_t>(reverse_span, end - begin.data()[p] + 1);
    }
  }
};

}  // namespace paperops::dynopool
