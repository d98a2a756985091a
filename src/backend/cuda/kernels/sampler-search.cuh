/*
 * What a block of threads needs to draw from one row of logits: loads, sums and prefix sums over
 * the block, and draws that work on the row in place, however many tokens are kept.
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

__device__ __forceinline__ double block_sum(double value) {
  double total;
  block_scan(value, total);
  return total;
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

  /* Calls work(logit, id) for this thread's part of [begin, end), four at a time. */
  template <class Work>
  __device__ __forceinline__ void each(Work work) const {
    const bool aligned = vocab % 4 == 0;
#pragma unroll 2
    for (int at = threadIdx.x * 4; at < vocab; at += kDrawThreads * 4) {
      float v[4];
      load4(logits, aligned, at, vocab, v);
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (at + k < vocab) work(v[k], at + k);
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
  for (int at = warp * chunk + lane * 4; at < end; at += 128) {
    float v[4];
    load4(r.logits, r.vocab % 4 == 0, at, end, v);
    float four = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) four += at + k < end ? weight(v[k]) : 0.0f;
    mass += four;
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
  for (int id = begin; id < stop; id++) own += weight(r.logits[id]);
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

/* A place in the order of logits: all larger ones have the measure `above`. */
struct Cut {
  u32 order;
  double above;
};

/* Places that one pass over the row looks at. */
constexpr int kPivots = 7;

/*
 * The largest logit from which on the tokens' measure (mass, or their number) reaches `target`,
 * or passes it; the lowest in range if it never does. Narrows the interval eightfold in each pass.
 */
template <class Measure>
__device__ Cut search_cut(const Row& r, Measure measure, double target, bool passes) {
  u64 low = order_of(r.best - r.draw.range / r.draw.scale * 1.001f), high = order_of(r.best);
  double above = 0.0;
  while (low < high) {
    const u64 span = high - low + 1;
    u32 pivot[kPivots];
    float sums[kPivots];
#pragma unroll
    for (int p = 0; p < kPivots; p++) {
      pivot[p] = static_cast<u32>(low + span * (p + 1) / (kPivots + 1));
      sums[p] = 0.0f;
    }
    r.each([&](float v, int) {
      const float m = measure(v);
      const u32 order = order_of(v);
#pragma unroll
      for (int p = 0; p < kPivots; p++) sums[p] += order >= pivot[p] ? m : 0.0f;
    });
    u64 next_low = low, next_high = high;
    double next_above = above;
    bool decided = false;
#pragma unroll
    for (int p = kPivots - 1; p >= 0; p--) {
      const double sum = block_sum(sums[p]);
      if (decided || pivot[p] == low) continue;
      if (passes ? sum > target : sum >= target) {
        next_low = pivot[p];
        decided = true;
      } else {
        next_high = pivot[p] - 1;
        next_above = sum;
      }
    }
    low = next_low;
    high = next_high;
    above = next_above;
  }
  return {static_cast<u32>(low), above};
}

/* Top-k, then top-p of what it keeps, then the draw, for more tokens than a list holds. */
__device__ int draw_by_search(Row& r) {
  const auto mass = [&](float v) { return r.weight(v); };
  const auto number = [&](float v) { return r.in_range(v) ? 1.0f : 0.0f; };
  Cut cut = {0, 0.0};
  double equals = kNoIndex; /* tokens kept of those with the cut's logit */
  double whole = r.whole;
  if (r.draw.top_k > 0) {
    cut = search_cut(r, number, r.draw.top_k, false);
    float sum = 0.0f, same = 0.0f;
    r.each([&](float v, int) {
      const u32 order = order_of(v);
      if (order > cut.order) sum += r.weight(v);
      if (order == cut.order) same += number(v);
    });
    equals = fmin(block_sum(same), r.draw.top_k - cut.above);
    cut.above = block_sum(sum);
    whole = cut.above + equals * r.weight(logit_of(cut.order));
  }
  double kept = whole;
  if (r.draw.top_p < 1.0) {
    const u32 before = cut.order;
    const double target = r.draw.top_p * whole;
    cut = search_cut(r, mass, target, false);
    const double weight = r.weight(logit_of(cut.order));
    const double wanted = weight > 0.0 ? fmax(1.0, ceil((target - cut.above) / weight)) : 1.0;
    equals = cut.order == before ? fmin(wanted, equals) : wanted;
    kept = cut.above + equals * weight;
  }
  const double target = r.draw.uniform * kept;
  Cut drawn = search_cut(r, mass, target, true);
  if (drawn.order < cut.order) drawn = cut;
  const double weight = r.weight(logit_of(drawn.order));
  double place = weight > 0.0 ? fmax(0.0, floor((target - drawn.above) / weight)) : 0.0;
  if (drawn.order == cut.order) place = fmin(place, equals - 1.0);
  const auto same = [&](float v) { return order_of(v) == drawn.order ? 1.0f : 0.0f; };
  return pick_by_id(r, same, [&](double total) { return fmin(place, total - 1.0); });
}
