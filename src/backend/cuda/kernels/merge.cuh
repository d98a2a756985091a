/*
 * Merging: after its items every worker merges its share of the split rows, as soon as all their
 * partials are there. The partials of one row: o = sum of o_i 2^(m_i - m) over sum of l_i
 * 2^(m_i - m), m the largest maximum.
 */
#pragma once
#include "plan-image.cuh"

constexpr int kBarrierMerge = 5;

/* kVectors vectors of split rows by one warp, kSlots partials of each at a time. */
template <class Shape, int kVectors, int kSlots>
__device__ void merge_vectors(const Attention& a, const Merge* merges, int first, int total,
                              int lane) {
  constexpr int kQuads = Shape::kHeadDim / 4;
  constexpr int kPerLane = (kQuads + 31) / 32;
  const u64 step = static_cast<u64>(a.kv_heads) * Shape::kGroup;
  u64 base[kVectors];
  int count[kVectors], most = 0;
  u16* to[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; v++) {
    const bool real = first + v < total;
    const int index = real ? first + v : first;
    const int head = index % Shape::kGroup;
    const int4 merge = __ldg(reinterpret_cast<const int4*>(merges + index / Shape::kGroup));
    const int kv_head = merge.w % a.kv_heads;
    base[v] = (static_cast<u64>(merge.y) * a.kv_heads + kv_head) * Shape::kGroup + head;
    count[v] = real ? merge.z : 0;
    most = count[v] > most ? count[v] : most;
    to[v] = a.out + static_cast<u64>(merge.x) * a.out_stride +
            (kv_head * Shape::kGroup + head) * Shape::kHeadDim;
  }
#pragma unroll
  for (int k = 0; k < kPerLane; k++) {
    const int quad = k * 32 + lane;
    if (quad >= kQuads) break;
    float top[kVectors], sum[kVectors];
    float4 o[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      top[v] = -1e30f, sum[v] = 0.0f;
      o[v] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    for (int slot = 0; slot < most; slot += kSlots) {
      /* All loads of this round go out before the first is used. */
      float2 state[kVectors][kSlots];
      float4 part[kVectors][kSlots];
#pragma unroll
      for (int v = 0; v < kVectors; v++)
#pragma unroll
        for (int i = 0; i < kSlots; i++) {
          const bool real = slot + i < count[v];
          const u64 index = base[v] + (slot + i) * step;
          state[v][i] = make_float2(-1e30f, 0.0f);
          part[v][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
          if (real) {
            state[v][i] = load_l2(a.partial_sum + index);
            part[v][i] =
                load_l2(reinterpret_cast<const float4*>(a.partial + index * Shape::kHeadDim) + quad);
          }
        }
#pragma unroll
      for (int v = 0; v < kVectors; v++) {
        float high = top[v];
#pragma unroll
        for (int i = 0; i < kSlots; i++) high = fmaxf(high, state[v][i].x);
        const float keep = exp2_fast(top[v] - high);
        top[v] = high;
        sum[v] *= keep;
        o[v].x *= keep, o[v].y *= keep, o[v].z *= keep, o[v].w *= keep;
#pragma unroll
        for (int i = 0; i < kSlots; i++) {
          const float w = exp2_fast(state[v][i].x - high);
          sum[v] += state[v][i].y * w;
          o[v].x += part[v][i].x * w, o[v].y += part[v][i].y * w;
          o[v].z += part[v][i].z * w, o[v].w += part[v][i].w * w;
        }
      }
    }
#pragma unroll
    for (int v = 0; v < kVectors; v++) {
      if (count[v] == 0) continue;
      const float norm = sum[v] > 0.0f ? 1.0f / sum[v] : 0.0f;
      const u32 lo = pack16(o[v].x * norm, o[v].y * norm);
      const u32 hi = pack16(o[v].z * norm, o[v].w * norm);
      *reinterpret_cast<uint2*>(to[v] + quad * 4) = make_uint2(lo, hi);
    }
  }
}

/* Brings the records of a worker's merges near; called early. */
__device__ __forceinline__ void prefetch_merges(const Attention& a, int thread, int threads) {
  const Worker* worker = worker_of(a, blockIdx.x);
  const int4 head = __ldg(reinterpret_cast<const int4*>(worker));
  const Merge* merges = reinterpret_cast<const Merge*>(a.image) + head.z;
  for (int i = thread * 8; i < head.w; i += threads * 8) prefetch_l2(merges + i);
}

/* A worker's merges: wait until all partials are there, then share the vectors out to warps. */
template <class Shape>
__device__ void merge_rows(const Attention& a, int warp, int lane) {
  constexpr int kWarps = Shape::kGroups * 4;
  const int4 head = __ldg(reinterpret_cast<const int4*>(worker_of(a, blockIdx.x)));
  if (head.w == 0) return;
  const Merge* merges = reinterpret_cast<const Merge*>(a.image) + head.z;
  for (int i = warp * 32 + lane; i < head.w; i += kWarps * 32) {
    const int4 merge = __ldg(reinterpret_cast<const int4*>(merges + i));
    int* counter = a.counters + merge.w;
    Patience patience;
    while (load_acquire(counter) < merge.z)
      if (patience.ends(a.abort_flag, Shape::kAbortMerge)) break;
    *counter = 0;
  }
  __threadfence();
  block_sync(kBarrierMerge, kWarps * 32);
  const int total = head.w * Shape::kGroup;
  if (total <= kWarps * 2) {
    for (int i = warp; i < total; i += kWarps)
      merge_vectors<Shape, 1, 16>(a, merges, i, total, lane);
  } else {
    for (int i = warp * 4; i < total; i += kWarps * 4)
      merge_vectors<Shape, 4, 4>(a, merges, i, total, lane);
  }
}
