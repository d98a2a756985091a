/*
 * From logits to tokens. ff_logit_stats finds each row's largest logit and log-sum-exp;
 * ff_draw_tokens draws where a row asks for it, as the host's engine/draw.ts does: the same token
 * for the same uniform number but for rounding; ff_step_inputs puts drawn tokens into the next
 * step's inputs, so that it can be handed in before the host has seen them.
 */
#include "common.cuh"
#include "sampler-cuts.cuh"

/*
 * A step's inputs out of pinned memory, which a kernel reads sooner than a copy would begin:
 * tokens, positions and slots of `rows` rows, `logit_rows` logit rows and the draws of as many as
 * have one. `inputs` is four arrays of `max_rows` and the draws. A token -1 - i is the one that
 * the step before drew in its logit row i.
 */
extern "C" __global__ void ff_step_inputs(const int* staged, int* inputs, const Result* results,
                                          int rows, int logit_rows, int draws, int max_rows) {
  constexpr int kDrawWords = sizeof(Draw) / 4;
  const volatile int* source = staged; /* never from a cache: the host writes it anew */
  const int i = blockIdx.x * blockDim.x + threadIdx.x, of_draws = i - 3 * rows - logit_rows;
  if (of_draws >= draws * kDrawWords) return;
  int word = source[i];
  int to = of_draws + 4 * max_rows;
  if (i < 3 * rows) {
    if (i < rows && word < 0) word = results[-1 - word].drawn;
    to = i / rows * max_rows + i % rows;
  } else if (of_draws < 0) {
    to = i - 3 * rows + 3 * max_rows;
  }
  inputs[to] = word;
}

/* Results of `rows` logit rows and attention's abort code, at out[0], into pinned memory. */
extern "C" __global__ void ff_step_results(const int4* results, const int* abort_flag, int4* out,
                                           int rows) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < rows) out[i + 1] = results[i];
  if (i == 0) *reinterpret_cast<int*>(out) = *abort_flag;
}

/* The largest of some logits, the lowest index among equals, and the sum of exp(logit - best). */
struct Stats {
  float best;
  int index;
  float sum;
  int unused;
};

__device__ __forceinline__ Stats merged(const Stats& a, const Stats& b) {
  const bool first = a.best > b.best || (a.best == b.best && a.index < b.index);
  const float best = fmaxf(a.best, b.best);
  const float sum = a.sum * __expf(a.best - best) + b.sum * __expf(b.best - best);
  return {best, first ? a.index : b.index, sum, 0};
}

__device__ __forceinline__ Stats warp_merged(Stats s) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) {
    const Stats other = {__shfl_xor_sync(~0u, s.best, o), __shfl_xor_sync(~0u, s.index, o),
                         __shfl_xor_sync(~0u, s.sum, o), 0};
    s = merged(s, other);
  }
  return s;
}

constexpr int kStatsThreads = 256;

/* Stats of a thread's part of [begin, end): groups of four, a block's stride apart. */
__device__ __forceinline__ Stats thread_stats(const float* row, bool aligned, int begin, int end) {
  Stats s = {-kFloatMax, kNoIndex, 0.0f, 0};
  const int stride = kStatsThreads * 4;
  for (int at = begin + threadIdx.x * 4; at < end; at += stride * kGroups) {
    float v[kGroups * 4];
#pragma unroll
    for (int g = 0; g < kGroups; g++) load4(row, aligned, at + g * stride, end, v + g * 4);
    float top = v[0];
#pragma unroll
    for (int k = 1; k < kGroups * 4; k++) top = fmaxf(top, v[k]);
    if (top > s.best) {
      s.sum *= __expf(s.best - top);
      s.best = top;
#pragma unroll
      for (int k = kGroups * 4 - 1; k >= 0; k--)
        if (v[k] == top) s.index = at + k / 4 * stride + k % 4;
    }
#pragma unroll
    for (int k = 0; k < kGroups * 4; k++) s.sum += __expf(v[k] - s.best);
  }
  return s;
}

/*
 * Grid (splits, rows): a block has `slice` logits of a row, and the last block of a row to end
 * merges the parts. `parts` is (rows, splits), `tickets` (rows) zero between launches.
 */
extern "C" __global__ void __launch_bounds__(kStatsThreads)
    ff_logit_stats(const float* logits, Stats* parts, u32* tickets, Result* results, int vocab,
                   int slice) {
  __shared__ Stats warps[kStatsThreads / 32];
  __shared__ bool is_last;
  const int row = blockIdx.y, splits = gridDim.x;
  const int begin = blockIdx.x * slice, end = min(vocab, begin + slice);
  const float* from = logits + static_cast<u64>(row) * vocab;
  Stats s = warp_merged(thread_stats(from, vocab % 4 == 0, begin, end));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = s;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kStatsThreads / 32; w++) s = merged(s, warps[w]);
    parts[row * splits + blockIdx.x] = s;
    __threadfence();
    is_last = atomicAdd(tickets + row, 1u) == splits - 1;
  }
  __syncthreads();
  if (!is_last || threadIdx.x >= 32) return;
  __threadfence();
  s = {-kFloatMax, kNoIndex, 0.0f, 0};
  for (int part = threadIdx.x; part < splits; part += 32) {
    const float4 p = __ldcg(reinterpret_cast<const float4*>(parts + row * splits + part));
    s = merged(s, {p.x, __float_as_int(p.y), p.z, 0});
  }
  s = warp_merged(s);
  if (threadIdx.x > 0) return;
  tickets[row] = 0;
  const int index = s.index < vocab ? s.index : 0;
  results[row] = {index, s.best + logf(s.sum), index, s.best};
}

/* Changes of a row's logits. */
constexpr int kChangesMax = 1024;

/* What a token's logit has to undergo: engine/sampler.ts has the order. */
struct Change {
  int token;
  float bias;
  int count;     /* times it was generated */
  int in_prompt; /* it counts as repeated in any case */
};

/* A row's changed logits as they were. */
struct Changed {
  float logits[kChangesMax + 1];
  int tokens[kChangesMax + 1];
  int count;
  bool has_pending;
};

__device__ __forceinline__ float changed(const Draw& draw, float logit, const Change& change) {
  logit += change.bias;
  if (change.count > 0 || change.in_prompt)
    logit = logit > 0.0f ? logit / draw.repetition : logit * draw.repetition;
  if (change.count > 0) logit -= draw.presence + draw.frequency * change.count;
  return logit;
}

/* Changes logits in place and finds the largest; `pending` is the token before the row's, or -1. */
__device__ int change_logits(Changed& old, Row& r, const volatile int* changes, int pending) {
  __shared__ u64 bests[kDrawWarps];
  const int count = r.draw.changes;
  if (threadIdx.x == 0) old.has_pending = pending < 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kDrawThreads) {
    const volatile int* c = changes + (r.draw.first + i) * 4;
    Change change = {c[0], __int_as_float(c[1]), c[2], c[3]};
    if (change.token == pending) {
      change.count++;
      old.has_pending = true;
    }
    old.tokens[i] = change.token;
    old.logits[i] = r.logits[change.token];
    r.logits[change.token] = changed(r.draw, old.logits[i], change);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    old.count = count;
    if (!old.has_pending) {
      old.count++;
      old.tokens[count] = pending;
      old.logits[count] = r.logits[pending];
      r.logits[pending] = changed(r.draw, old.logits[count], {pending, 0.0f, 1, 0});
    }
  }
  __syncthreads();
  u64 best = ~0ull;
  r.each([&](float v, int id) { best = min(best, sort_key(v, id)); });
#pragma unroll
  for (int o = 16; o > 0; o /= 2) best = min(best, __shfl_xor_sync(~0u, best, o));
  if (threadIdx.x % 32 == 0) bests[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kDrawWarps; w++) best = min(best, bests[w]);
  const int token = static_cast<int>(static_cast<u32>(best));
  r.best = r.logits[token];
  return token;
}

/*
 * One block a row, after ff_logit_stats. A row without a draw keeps its largest logit. `changes`
 * lies in pinned memory; the logits are as before when this ends.
 */
extern "C" __global__ void __launch_bounds__(kDrawThreads, 1)
    ff_draw_tokens(float* logits, const Draw* draws, const int* changes, const int* tokens,
                   const int* logit_rows, Result* results, int vocab) {
  __shared__ Shared sh;
  __shared__ Changed old;
  const Draw draw = draws[blockIdx.x];
  if (draw.scale == 0.0f && draw.changes < 0) return;
  Result& result = results[blockIdx.x];
  float* values = logits + static_cast<u64>(blockIdx.x) * vocab;
  Row r = {draw, values, vocab, result.drawn_logit, 0.0};
  int token = 0;
  if (draw.changes >= 0) {
    const int pending = draw.pending ? tokens[logit_rows[blockIdx.x]] : -1;
    token = change_logits(old, r, changes, pending);
  }
  if (draw.scale != 0.0f) token = draw_token(sh, r);
  __syncthreads();
  if (draw.changes >= 0)
    for (int i = threadIdx.x; i < old.count; i += kDrawThreads)
      values[old.tokens[i]] = old.logits[i];
  __syncthreads();
  if (threadIdx.x > 0) return;
  result.drawn = token;
  result.drawn_logit = values[token];
}
