// Runs CUDA kernels on the host, for tests: each thread of a block is a fiber, blocks run one after another.
//
// The kernels' own source is compiled by a host compiler with PAPEROPS_EMULATE_CUDA. A fiber runs until it reaches a
// barrier or an exchange between lanes and then lets the others run. Shared memory is static, so nothing of one block
// is cleared for the next, as on a device.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::fmax;
using std::fmin;
using std::max;
using std::min;

struct Coordinates {
  unsigned x;
};
inline Coordinates threadIdx, blockIdx, blockDim, gridDim;
using cudaStream_t = void*;

struct float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct double2 {
  double x, y;
};

using __half = _Float16;
struct __nv_bfloat16 {
  uint16_t bits;
  operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half __float2half_rn(float value) { return static_cast<__half>(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) {
    return {0x7fff};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
// A NaN made by an operation is 0x7fffffff on the device; an x86 one carries a sign.
inline uint32_t __float_as_uint(float value) {
  return value != value ? 0x7fffffffu : std::bit_cast<uint32_t>(value);
}
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline unsigned __vimin3_u32(unsigned a, unsigned b, unsigned c) { return min(a, min(b, c)); }
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __ffs(int value) { return value == 0 ? 0 : std::countr_zero(static_cast<unsigned>(value)) + 1; }

namespace emulation {

constexpr unsigned kLanes = 32;
constexpr size_t kStack = 65536;
constexpr size_t kMostThreads = 1024;

struct Barrier {
  unsigned arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t values[kLanes];
};

struct Block {
  std::vector<ucontext_t> fibers;
  std::vector<std::array<jmp_buf, 1>> places;
  std::vector<bool> started;
  std::vector<bool> ended;
  std::vector<Warp> warps;
  Barrier barrier;
  ucontext_t scheduler;
  jmp_buf scheduler_place;
  unsigned current = 0;
  std::function<void()> body;
};
inline Block* block = nullptr;
// Made once and never cleared: a block's fibers take the stacks of the block before.
inline const std::unique_ptr<char[]> stacks(new char[kMostThreads * kStack]);

// A fiber is entered by swapcontext once; from then on jumps are used, which make no system call.
inline void yield() {
  if (_setjmp(block->places[block->current][0]) == 0) {
    _longjmp(block->scheduler_place, 1);
  }
}

inline void resume(unsigned fiber) {
  if (_setjmp(block->scheduler_place) == 0) {
    if (block->started[fiber]) {
      _longjmp(block->places[fiber][0], 1);
    }
    block->started[fiber] = true;
    swapcontext(&block->scheduler, &block->fibers[fiber]);
  }
}

inline void wait(Barrier& barrier, unsigned members) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == members) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) {
    yield();
  }
}

inline void enter() {
  block->body();
  block->ended[block->current] = true;
  yield();
}

// All lanes put a value, then all read: two barriers, so that the next exchange does not overwrite this one.
template <typename T, typename Read>
auto exchange(T value, const Read& read) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = block->warps[block->current / kLanes];
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  warp.values[block->current % kLanes] = bits;
  wait(warp.barrier, kLanes);
  const auto result = read([&](unsigned lane) {
    T other;
    std::memcpy(&other, &warp.values[lane], sizeof other);
    return other;
  });
  wait(warp.barrier, kLanes);
  return result;
}

template <typename Body>
void run(unsigned grid, unsigned threads, const Body& body) {
  gridDim.x = grid;
  blockDim.x = threads;
  for (unsigned index = 0; index < grid; ++index) {
    Block state;
    block = &state;
    state.body = body;
    state.fibers.resize(threads);
    state.ended.assign(threads, false);
    state.started.assign(threads, false);
    state.places.resize(threads);
    state.warps.resize(threads / kLanes);
    for (unsigned t = 0; t < threads; ++t) {
      getcontext(&state.fibers[t]);
      state.fibers[t].uc_stack.ss_sp = stacks.get() + t * kStack;
      state.fibers[t].uc_stack.ss_size = kStack;
      state.fibers[t].uc_link = nullptr;
      makecontext(&state.fibers[t], enter, 0);
    }
    unsigned running = threads;
    while (running > 0) {
      running = 0;
      for (unsigned t = 0; t < threads; ++t) {
        if (!state.ended[t]) {
          state.current = t;
          threadIdx.x = t;
          blockIdx.x = index;
          resume(t);
          running += !state.ended[t];
        }
      }
    }
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::block->barrier, blockDim.x); }

inline void __syncwarp() {
  emulation::wait(emulation::block->warps[emulation::block->current / emulation::kLanes].barrier, emulation::kLanes);
}

template <typename T>
T __shfl_sync(unsigned, T value, int source) {
  return emulation::exchange(value, [&](auto other) { return other(static_cast<unsigned>(source)); });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const unsigned lane = emulation::block->current % emulation::kLanes;
  return emulation::exchange(value, [&](auto other) { return other(lane ^ static_cast<unsigned>(mask)); });
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = emulation::block->current % emulation::kLanes;
  return emulation::exchange(value, [&](auto other) { return other(lane < delta ? lane : lane - delta); });
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  return emulation::exchange(static_cast<int>(predicate), [](auto other) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < emulation::kLanes; ++lane) {
      result |= static_cast<unsigned>(other(lane)) << lane;
    }
    return result;
  });
}
inline bool __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }
template <typename T>
unsigned __match_any_sync(unsigned, T value) {
  return emulation::exchange(value, [&](auto other) {
    unsigned result = 0;
    for (unsigned lane = 0; lane < emulation::kLanes; ++lane) {
      result |= static_cast<unsigned>(other(lane) == value) << lane;
    }
    return result;
  });
}
inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return emulation::exchange(value, [](auto other) {
    unsigned result = other(0);
    for (unsigned lane = 1; lane < emulation::kLanes; ++lane) {
      result = min(result, other(lane));
    }
    return result;
  });
}
inline int __reduce_max_sync(unsigned, int value) {
  return emulation::exchange(value, [](auto other) {
    int result = other(0);
    for (unsigned lane = 1; lane < emulation::kLanes; ++lane) {
      result = max(result, other(lane));
    }
    return result;
  });
}

namespace paperops::cuda {

template <typename... Parameters, typename... Arguments>
void launch(
    void (*kernel)(Parameters...), unsigned grid, unsigned threads, size_t, cudaStream_t,
    const Arguments&... arguments) {
  emulation::run(grid, threads, [&] { kernel(arguments...); });
}

}  // namespace paperops::cuda
