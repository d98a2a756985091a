/*
 * What a block of threads needs to draw from one row of logits: loads, sums and prefix sums over
 * the block, and the draw without cuts, by ascending id.
 */
#pragma once

constexpr float kFloatMax = 3.402823466e38f;
constexpr int kNoIndex = 0x7fffffff;
constexpr int kDrawThreads = 512;
constexpr int kDrawWarps = kDrawThreads / 32;

/* What a step gives back for a row of logits. */
struct Result {
  int argmax;
  float log_sum_exp;
  int drawn;
  float drawn_logit;
};

/* How a row is drawn: engine/draw.ts has the meaning. */
struct Draw {
  float scale; /* 1 / temperature; 0 = the largest logit */
  float range; /* how far below the best, times scale, a token may lie */
  int top_k;   /* 0 = off */
  int changes; /* of logits before the draw; below 0: none, and nothing is drawn if scale is 0 */
  double top_p;
  double uniform;
  int first; /* change */
  float repetition;
  float presence;
  float frequency;
  int pending; /* the row's own token counts as generated once more */
  int unused[3];
};

/* Groups of four logits that a thread has under way: reads take long, and threads are few. */
constexpr int kGroups = 4;

/* Four logits from `at`, -kFloatMax beyond `end`. */
__device__ __forceinline__ void load4(const float* row, bool aligned, int at, int end, float* v) {
  if (aligned && at + 4 <= end) {
    const float4 all = *reinterpret_cast<const float4*>(row + at);
    v[0] = all.x, v[1] = all.y, v[2] = all.z, v[3] = all.w;
  } else {
#pragma unroll
    for (int k = 0; k < 4; k++) v[k] = at + k < end ? row[at + k] : -kFloatMax;
  }
}

/* Unsigned numbers in the order of floats; both zeros are one. */
__device__ __forceinline__ u32 order_of(float v) {
  const u32 bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float logit_of(u32 order) {
  return __uint_as_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

/* Sum over the threads before this one; `total` over all. The same in every run. */
__device__ __forceinline__ double block_scan(double value, double& total) {
  __shared__ double warps[kDrawWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  double running = value;
#pragma unroll
  for (int o = 1; o < 32; o *= 2) {
    const double other = __shfl_up_sync(~0u, running, o);
    if (lane >= o) running += other;
  }
  if (lane == 31) warps[warp] = running;
  __syncthreads();
  double before = 0.0;
  total = 0.0;
  for (int w = 0; w < kDrawWarps; w++) {
    if (w == warp) before = total;
    total += warps[w];
  }
  __syncthreads();
  return before + running - value;
}

/* Sums over the block, in place. */
template <int kCount>
__device__ __forceinline__ void block_sums(double (&values)[kCount]) {
  __shared__ double warps[kCount][kDrawWarps];
#pragma unroll
  for (int k = 0; k < kCount; k++) {
#pragma unroll
    for (int o = 16; o > 0; o /= 2) values[k] += __shfl_xor_sync(~0u, values[k], o);
    if (threadIdx.x % 32 == 0) warps[k][threadIdx.x / 32] = values[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kCount; k++) {
    values[k] = 0.0;
    for (int w = 0; w < kDrawWarps; w++) values[k] += warps[k][w];
  }
  __syncthreads();
}

__device__ __forceinline__ double block_sum(double value) {
  double values[1] = {value};
  block_sums(values);
  return values[0];
}

/* One row and how it is drawn. */
struct Row {
  Draw draw;
  float* logits;
  int vocab;
  float best;
  double whole; /* mass of all tokens in range, where it is known */

  __device__ __forceinline__ bool in_range(float v) const {
    return (best - v) * draw.scale <= draw.range;
  }

  /* exp((v - best) / temperature), 0 out of range. */
  __device__ __forceinline__ float weight(float v) const {
    const float x = (best - v) * draw.scale;
    return x <= draw.range ? __expf(-x) : 0.0f;
  }

  /* Calls work(logit, id) for this thread's part of the row, by ascending id. */
  template <class Work>
  __device__ __forceinline__ void each(Work work) const {
    const bool aligned = vocab % 4 == 0;
    constexpr int kStride = kDrawThreads * 4;
    for (int at = threadIdx.x * 4; at < vocab; at += kStride * kGroups) {
      float v[kGroups * 4];
#pragma unroll
      for (int g = 0; g < kGroups; g++) load4(logits, aligned, at + g * kStride, vocab, v + g * 4);
#pragma unroll
      for (int k = 0; k < kGroups * 4; k++) {
        const int id = at + k / 4 * kStride + k % 4;
        if (id < vocab) work(v[k], id);
      }
    }
  }
};

/*
 * The id at which the sum of weight(logit) by ascending id passes `left(total)`: first the warp's
 * part of the row, then the thread's part of that.
 */
template <class Weight, class Left>
__device__ int pick_by_id(const Row& r, Weight weight, Left left_of) {
  __shared__ double masses[kDrawWarps];
  __shared__ int winner, last, picked;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int chunk = (r.vocab + kDrawWarps * 128 - 1) / (kDrawWarps * 128) * 128;
  const int end = min(r.vocab, (warp + 1) * chunk);
  double mass = 0.0;
  for (int at = warp * chunk + lane * 4; at < end; at += 128 * kGroups) {
    float v[kGroups * 4], sum = 0.0f;
#pragma unroll
    for (int g = 0; g < kGroups; g++)
      load4(r.logits, r.vocab % 4 == 0, at + g * 128, end, v + g * 4);
#pragma unroll
    for (int k = 0; k < kGroups * 4; k++)
      sum += at + k / 4 * 128 + k % 4 < end ? weight(v[k]) : 0.0f;
    mass += sum;
  }
#pragma unroll
  for (int o = 16; o > 0; o /= 2) mass += __shfl_xor_sync(~0u, mass, o);
  if (lane == 0) masses[warp] = mass;
  if (threadIdx.x == 0) {
    winner = kDrawThreads;
    last = -1;
    picked = 0;
  }
  __syncthreads();
  double total = 0.0;
  for (int w = 0; w < kDrawWarps; w++) total += masses[w];
  double left = left_of(total);
  int at = 0;
  while (at < kDrawWarps - 1 && left >= masses[at]) left -= masses[at++];
  /* Rounding may lead past the last token with weight. */
  while (at > 0 && masses[at] == 0.0) at--;

  const int each = (chunk + kDrawThreads - 1) / kDrawThreads;
  const int begin = at * chunk + threadIdx.x * each;
  const int stop = min(min(r.vocab, (at + 1) * chunk), begin + each);
  double own = 0.0;
  constexpr int kBatch = 8; /* reads under way */
  for (int id = begin; id < stop; id += kBatch) {
    float v[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; k++) v[k] = r.logits[min(id + k, r.vocab - 1)];
#pragma unroll
    for (int k = 0; k < kBatch; k++) own += id + k < stop ? weight(v[k]) : 0.0f;
  }
  const double before = block_scan(own, total);
  if (own > 0.0) {
    atomicMax(&last, threadIdx.x);
    if (left < before + own) atomicMin(&winner, threadIdx.x);
  }
  __syncthreads();
  if (threadIdx.x == (winner < kDrawThreads ? winner : last)) {
    left -= before;
    for (int id = begin; id < stop; id++) {
      const double w = weight(r.logits[id]);
      if (w == 0.0) continue;
      picked = id;
      left -= w;
      if (left < 0.0) break;
    }
  }
  __syncthreads();
  return picked;
}

/* From all tokens in range. */
__device__ int draw_any(const Row& r) {
  return pick_by_id(
      r, [&](float v) { return r.weight(v); },
      [&](double total) { return r.draw.uniform * total; });
}
