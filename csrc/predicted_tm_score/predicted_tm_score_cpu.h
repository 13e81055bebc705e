// The predicted TM-score on the CPU: what predicted_tm_score_cpu.cpp asks of the kernel of one instruction set
// (predicted_tm_score_cpu_kernels.h).
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "../common/instruction_set.h"
#include "../common/types.h"

namespace paperops::tm_score {

// One row of logits, [residues, bins], and the item that it belongs to.
template <typename X>
struct Row {
  const X* logits;
  const Wide<X>* weights;     // [residues]
  const int64_t* chains;      // [residues], or null: all pairs count
  const Wide<X>* bin_scores;  // [bins]
  int64_t residues;
  int64_t bins;
  Wide<X> weight;  // of the row's own residue
  int64_t chain;
};

// sum_j w_j E_j and sum_j w_j, over the pairs that count; E_j = sum_b softmax_b(logits_j) bin_scores_b.
struct Sums {
  double expected;
  double weights;
};

template <typename X>
using SumRow = Sums (*)(const Row<X>& row);

template <typename X>
SumRow<X> sum_row_portable();
template <typename X>
SumRow<X> sum_row_avx2();
template <typename X>
SumRow<X> sum_row_avx512();

}  // namespace paperops::tm_score
