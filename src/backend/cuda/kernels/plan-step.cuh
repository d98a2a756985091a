/*
 * Brings a plan up to date before a step: rows' positions, and the words of the image that change
 * as leaves grow. The source lies in pinned host memory, which a kernel reads sooner than a copy
 * would begin.
 */
#pragma once
#include "common.cuh"

/*
 * staged: `rows` positions, then `patches` pairs (word of the image, value). counter_words < 0
 * leaves the counters as they are; otherwise so many are cleared, and the count of started
 * groups in the abort flag's second word: a new plan starts from zero.
 */
extern "C" __global__ void ff_plan_step(const int* staged, int* position, int* image,
                                        int* counters, int* abort_flag, int rows, int patches,
                                        int counter_words) {
  const int thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
  const volatile int* source = staged; /* never from a cache: the host writes it anew */
  for (int i = thread; i < rows; i += threads) position[i] = source[i];
  for (int i = thread; i < patches; i += threads) {
    const int word = source[rows + i * 2];
    image[word] = source[rows + i * 2 + 1];
  }
  for (int i = thread; i < counter_words; i += threads) counters[i] = 0;
  if (counter_words >= 0 && thread == 0) abort_flag[1] = 0;
}
