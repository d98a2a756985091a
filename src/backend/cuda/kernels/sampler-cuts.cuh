/*
 * Draws with cuts: from what top-k and top-p keep, in the order of descending logits, by id among
 * equals. Few tokens are sorted in shared memory; many are found by searches over the row.
 */
#pragma once
#include "sampler-search.cuh"

/* By descending logit the token's place, by id among equals; the order of a draw with cuts. */
__device__ __forceinline__ u64 sort_key(float logit, int id) {
  return static_cast<u64>(~order_of(logit)) << 32 | static_cast<u32>(id);
}

/* Ascending bitonic sort of n (a power of two) shared elements by the whole block. */
template <class T>
__device__ void block_sort(T* values, int n) {
  for (int size = 2; size <= n; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < n / 2; i += kDrawThreads) {
        const int low = 2 * i - i % stride, high = low + stride;
        const T a = values[low], b = values[high];
        if ((a > b) == ((low & size) == 0)) {
          values[low] = b;
          values[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

/* Tokens that may be kept, if they are so few. */
constexpr int kListMax = 2048;

struct Shared {
  union {
    u32 maxima[kDrawThreads];
    u64 list[kListMax];
  };
  double running[kListMax]; /* mass up to and with each element of the sorted list */
  int count;
  int first; /* result of a search for the first place */
};

/*
 * A logit that at most a few more than the kept tokens reach: every thread's largest logit is one
 * of as many tokens, so that the k-th largest of these is no larger than the k-th of all, and so
 * with the mass. False where that needs more tokens than there are threads.
 */
__device__ bool find_floor(Shared& sh, Row& r, float& floor) {
  float top = -kFloatMax, mass = 0.0f;
  r.each([&](float v, int) {
    top = fmaxf(top, v);
    mass += r.weight(v);
  });
  if (r.draw.top_k == 0) r.whole = block_sum(mass);
  sh.maxima[threadIdx.x] = ~order_of(top);
  if (threadIdx.x == 0) sh.first = kDrawThreads;
  block_sort(sh.maxima, kDrawThreads);
  const float mine = logit_of(~sh.maxima[threadIdx.x]);
  int place = r.draw.top_k - 1;
  if (r.draw.top_k == 0) {
    double total;
    const double before = block_scan(r.weight(mine), total);
    if (before + r.weight(mine) >= r.draw.top_p * r.whole) atomicMin(&sh.first, threadIdx.x);
    __syncthreads();
    place = sh.first;
  }
  const bool found = place < kDrawThreads;
  if (found) floor = logit_of(~sh.maxima[place]);
  __syncthreads();
  return found;
}

/*
 * Collects the tokens in range of orders `low` to `high`, sorted; false where they are none or too
 * many.
 */
__device__ bool collect(Shared& sh, const Row& r, u32 low, u32 high) {
  if (threadIdx.x == 0) sh.count = 0;
  __syncthreads();
  r.each([&](float v, int id) {
    const u32 order = order_of(v);
    if (order < low || order > high || !r.in_range(v)) return;
    const int at = atomicAdd(&sh.count, 1);
    if (at < kListMax) sh.list[at] = sort_key(v, id);
  });
  __syncthreads();
  const int count = sh.count;
  if (count == 0 || count > kListMax) return false;
  int padded = 2;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += kDrawThreads) sh.list[i] = ~0ull;
  block_sort(sh.list, padded);
  return true;
}

/* Fills `running` for the first `count` tokens of the list, beginning with `above`. */
template <class Measure>
__device__ void add_up(Shared& sh, Measure measure, int count, double above) {
  constexpr int kEach = kListMax / kDrawThreads;
  double own[kEach], sum = 0.0, total;
#pragma unroll
  for (int k = 0; k < kEach; k++) {
    const int i = threadIdx.x * kEach + k;
    own[k] = i < count ? measure(logit_of(~static_cast<u32>(sh.list[i] >> 32))) : 0.0f;
    sum += own[k];
  }
  double before = above + block_scan(sum, total);
#pragma unroll
  for (int k = 0; k < kEach; k++) sh.running[threadIdx.x * kEach + k] = before += own[k];
  __syncthreads();
}

/* The first place below `count` whose running mass passes `target`, else the last. */
__device__ int first_passing(Shared& sh, int count, double target, bool or_equal) {
  if (threadIdx.x == 0) sh.first = count - 1;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kDrawThreads) {
    if (or_equal ? sh.running[i] >= target : sh.running[i] > target) atomicMin(&sh.first, i);
  }
  __syncthreads();
  const int first = sh.first;
  __syncthreads();
  return first;
}

__device__ __forceinline__ int id_of(u64 key) { return static_cast<int>(static_cast<u32>(key)); }

/* Cuts the sorted list by top-k and top-p and draws from what is left. */
__device__ int draw_from_list(Shared& sh, const Row& r) {
  int kept = sh.count;
  if (r.draw.top_k > 0) kept = min(kept, r.draw.top_k);
  add_up(sh, [&](float v) { return r.weight(v); }, kept, 0.0);
  const double whole = r.draw.top_k > 0 ? sh.running[kept - 1] : r.whole;
  kept = first_passing(sh, kept, r.draw.top_p * whole, true) + 1;
  return id_of(sh.list[first_passing(sh, kept, r.draw.uniform * sh.running[kept - 1], false)]);
}

/* A token by its place in the order of a draw with cuts, and the measure up to and with it. */
struct Place {
  u64 key;
  double through;
};

/* Orders that one pass over the row looks at. */
constexpr int kPivots = 7;

/* The token at which the measure of `tokens` equal logits, after `above`, reaches the target. */
template <class Measure>
__device__ Place find_equal(const Row& r, Measure measure, u32 order, double above, double tokens,
                            double target, bool passes) {
  const double each = measure(logit_of(order));
  const double part = each > 0.0 ? (target - above) / each : 0.0;
  const double place = fmin(fmax(passes ? floor(part) : ceil(part) - 1.0, 0.0), tokens - 1.0);
  const auto same = [&](float v) { return order_of(v) == order ? 1.0f : 0.0f; };
  const int id = pick_by_id(r, same, [&](double) { return place; });
  return {static_cast<u64>(~order) << 32 | static_cast<u32>(id), above + (place + 1.0) * each};
}

/*
 * The first token at which the measure (mass, or number) of all up to it reaches `target`, or
 * passes it. An interval of orders is narrowed eightfold in each pass over the row, until its
 * tokens fit into the list.
 */
template <class Measure>
__device__ Place find_place(Shared& sh, const Row& r, Measure measure, double target,
                            bool passes) {
  u64 low = order_of(r.best - r.draw.range / r.draw.scale * 1.001f), high = order_of(r.best);
  double above = 0.0;
  for (;;) {
    const u64 span = high - low + 1;
    u32 pivot[kPivots];
    float sums[kPivots], within = 0.0f;
#pragma unroll
    for (int p = 0; p < kPivots; p++) {
      pivot[p] = static_cast<u32>(low + span * (p + 1) / (kPivots + 1));
      sums[p] = 0.0f;
    }
    r.each([&](float v, int) {
      const float m = measure(v);
      const u32 order = order_of(v);
      if (order >= low && order <= high && r.in_range(v)) within += 1.0f;
#pragma unroll
      for (int p = 0; p < kPivots; p++) sums[p] += order >= pivot[p] ? m : 0.0f;
    });
    double all[kPivots + 1];
#pragma unroll
    for (int p = 0; p < kPivots; p++) all[p] = sums[p];
    all[kPivots] = within;
    block_sums(all);
    const double tokens = all[kPivots];
    if (tokens <= kListMax) break;
    if (low == high)
      return find_equal(r, measure, static_cast<u32>(low), above, tokens, target, passes);
    u64 next_low = low, next_high = high;
    bool decided = false;
#pragma unroll
    for (int p = kPivots - 1; p >= 0; p--) {
      const double sum = all[p];
      if (decided || pivot[p] == low) continue;
      if (passes ? sum > target : sum >= target) {
        next_low = pivot[p];
        decided = true;
      } else {
        next_high = pivot[p] - 1;
        above = sum;
      }
    }
    low = next_low;
    high = next_high;
  }
  const bool any = collect(sh, r, static_cast<u32>(low), static_cast<u32>(high));
  /* Nothing is left where all tokens together do not reach it. */
  if (!any) return {~0ull, above};
  const int count = sh.count;
  add_up(sh, measure, count, above);
  const int at = first_passing(sh, count, target, !passes);
  return {sh.list[at], sh.running[at]};
}

/* Top-k, then top-p of what it keeps, then the draw, where a list does not hold what is kept. */
__device__ int draw_by_search(Shared& sh, const Row& r) {
  const auto mass = [&](float v) { return r.weight(v); };
  Place kept = {~0ull, r.whole};
  if (r.draw.top_k > 0) {
    const auto number = [&](float v) { return r.in_range(v) ? 1.0f : 0.0f; };
    kept = find_place(sh, r, number, r.draw.top_k, false);
    float sum = 0.0f;
    r.each([&](float v, int id) { sum += sort_key(v, id) <= kept.key ? r.weight(v) : 0.0f; });
    kept.through = block_sum(sum);
  }
  if (r.draw.top_p < 1.0) {
    const Place cut = find_place(sh, r, mass, r.draw.top_p * kept.through, false);
    if (cut.key < kept.key) kept = cut;
  }
  const Place drawn = find_place(sh, r, mass, r.draw.uniform * kept.through, true);
  const int id = id_of(min(drawn.key, kept.key));
  return id >= 0 && id < r.vocab ? id : 0;
}

__device__ int draw_token(Shared& sh, Row& r) {
  if (r.draw.top_k == 0 && r.draw.top_p >= 1.0) return draw_any(r);
  float floor = 0.0f;
  const bool few = find_floor(sh, r, floor) &&
                   collect(sh, r, order_of(floor), order_of(r.best));
  return few ? draw_from_list(sh, r) : draw_by_search(sh, r);
}
