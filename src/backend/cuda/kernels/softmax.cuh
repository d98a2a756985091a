/*
 * The running softmax of a thread's two rows, after FlashAttention. A row's maximum is that of an
 * earlier tile as long as no sum says that it is far too low: then most tiles need neither maxima
 * nor a smaller o, and nothing stands between their scores and the exponential functions. The
 * result is the same, as o and sum are relative to whatever maximum says (FlashAttention-4 waits
 * likewise before it makes o smaller). Scores, e and o have the layout of product-mma.cuh.
 */
#pragma once
#include "plan-image.cuh"

template <class Shape>
struct Softmax {
  static constexpr float kNone = -1e30f;   /* maximum of a row that has seen nothing */
  static constexpr float kMasked = -3e38f; /* a score that does not count: below kNone, scaled */
  /* Of a thread's e in one tile, before a maximum rises: half floats end at 65,504. */
  static constexpr float kSumMax = 32768.0f;
  static constexpr float kLog2e = 1.4426950408889634f;

  const Attention& a;
  float maximum[2], sum[2];
  bool fresh;       /* no maxima known yet */
  float head_scale; /* with 8-bit KV: scale_log2 times the scale of this KV head's keys */

  __device__ float scale_log2() const { return Shape::kKv8 ? head_scale : a.scale_log2; }

  __device__ void begin(int kv_head) {
    if constexpr (Shape::kKv8) head_scale = a.scale_log2 * __ldg(a.kv_scale + kv_head * 2);
    fresh = true;
#pragma unroll
    for (int half = 0; half < 2; half++) maximum[half] = kNone, sum[half] = 0.0f;
  }

  /* Where the variant has it, each score becomes softcap * tanh(score / softcap). */
  template <int kBlocks>
  __device__ void cap(float (&s)[kBlocks][4]) const {
    if constexpr (Shape::kSoftcap) {
      /* tanh(x) = 1 - 2 / (exp(2 x) + 1) */
      const float in = 2.0f * scale_log2() / a.softcap;
      const float out = a.softcap / scale_log2() * kLog2e;
#pragma unroll
      for (int b = 0; b < kBlocks; b++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          if (s[b][i] > kMasked)
            s[b][i] = out * (1.0f - 2.0f / (exp2_fast(s[b][i] * in) + 1.0f));
    }
  }

  /* First step of a tile: e becomes exp2 of the scaled scores less the row's maximum. */
  template <int kBlocks>
  __device__ void exponentiate(const float (&s)[kBlocks][4], float (&e)[kBlocks][4]) const {
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        e[b][i] = exp2_fast(s[b][i] * scale_log2() - maximum[i >> 1]);
  }

  /*
   * Second step: sums are brought up to date. Where maxima turn out to be too low, they rise and e
   * is made again. Returns whether o has to shrink, by `scale`. Apart from the first step, because
   * additions right behind the exponential functions would wait for each of them.
   */
  template <int kBlocks>
  __device__ bool settle(const float (&s)[kBlocks][4], float (&e)[kBlocks][4],
                         float (&scale)[2]) {
    bool grows = false;
    float add[2];
    add_up(e, add);
    if (__any_sync(~0u, add[0] > kSumMax || add[1] > kSumMax)) {
      grows = raise(s, scale);
      exponentiate(s, e);
      add_up(e, add);
    }
    sum[0] += add[0], sum[1] += add[1];
    return grows;
  }

  /* Both steps. */
  template <int kBlocks>
  __device__ bool soften(const float (&s)[kBlocks][4], float (&e)[kBlocks][4],
                         float (&scale)[2]) {
    bool grows = false;
    if (fresh) grows = raise(s, scale);
    fresh = false;
    exponentiate(s, e);
    const bool rises = settle(s, e, scale);
    return grows || rises;
  }

  /* Both steps in place, where registers are too few for s and e: maxima rise with each tile. */
  template <int kBlocks>
  __device__ bool soften_exactly(float (&s)[kBlocks][4], float (&scale)[2]) {
    const bool grows = raise(s, scale);
    exponentiate(s, s);
    float add[2];
    add_up(s, add);
    sum[0] += add[0], sum[1] += add[1];
    return grows;
  }

  /* Sums over the quads of lanes that share rows; at the end of an item. */
  __device__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
      sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
    }
  }

 private:
  template <int kBlocks>
  __device__ static void add_up(const float (&e)[kBlocks][4], float (&add)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float even = e[0][half * 2] + e[0][half * 2 + 1], odd = e[1][half * 2] + e[1][half * 2 + 1];
#pragma unroll
      for (int b = 2; b < kBlocks; b += 2) {
        even += e[b][half * 2], odd += e[b + 1][half * 2];
        even += e[b][half * 2 + 1], odd += e[b + 1][half * 2 + 1];
      }
      add[half] = even + odd;
    }
  }

  /* Maxima rise to those of the scores, and sums shrink by `scale`. False if none has changed. */
  template <int kBlocks>
  __device__ bool raise(const float (&s)[kBlocks][4], float (&scale)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float even = fmaxf(s[0][half * 2], s[0][half * 2 + 1]);
      float odd = fmaxf(s[1][half * 2], s[1][half * 2 + 1]);
#pragma unroll
      for (int b = 2; b < kBlocks; b += 2) {
        even = fmaxf(even, fmaxf(s[b][half * 2], s[b][half * 2 + 1]));
        odd = fmaxf(odd, fmaxf(s[b + 1][half * 2], s[b + 1][half * 2 + 1]));
      }
      float top = fmaxf(even, odd);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
      top = fmaxf(maximum[half], top * scale_log2());
      scale[half] = exp2_fast(maximum[half] - top);
      maximum[half] = top;
      sum[half] *= scale[half];
    }
    return __any_sync(~0u, scale[0] != 1.0f || scale[1] != 1.0f);
  }
};

/* Packs e as the A fragments of the second product. */
template <int kSteps>
__device__ __forceinline__ void pack(const float (&e)[kSteps * 2][4], u32 (&p)[kSteps][4]) {
#pragma unroll
  for (int step = 0; step < kSteps; step++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* from = &e[step * 2 + (i >> 1)][(i & 1) * 2];
      p[step][i] = pack_operand(from[0], from[1]);
    }
}

/* e is computed before this point, and not after a wait that follows. */
template <int kBlocks>
__device__ __forceinline__ void pin(float (&e)[kBlocks][4]) {
#pragma unroll
  for (int b = 0; b < kBlocks; b++)
    asm volatile("" : "+f"(e[b][0]), "+f"(e[b][1]), "+f"(e[b][2]), "+f"(e[b][3])::"memory");
}
