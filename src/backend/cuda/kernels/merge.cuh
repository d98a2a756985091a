/*
 * Merging: after its items every worker merges its share of the split rows, as soon as all their
 * partials are there. The partials of one row: o = sum of o_i 2^(m_i - m) over sum of l_i
 * 2^(m_i - m), m the largest maximum. Shares are counted in vectors (row, query head).
 */
#pragma once
#include "consumer.cuh"

/*
 * Launches alternate between two sets of counters: one counts, the other is cleared. Which one it
 * is follows from the number of groups of warps that have started so far, over all launches; the
 * thread that counted asks for its number only when it is needed, long after.
 */
struct LaunchCount {
  int groups; /* of one launch */
  u32 started;

  __device__ LaunchCount(const Attention& a, int groups_of_block) {
    groups = gridDim.x * groups_of_block;
    started = 0;
    if (threadIdx.x % 128 == 0)
      started = atomicInc(reinterpret_cast<u32*>(a.abort_flag + 1), 2 * groups - 1);
  }

  /* 0 or 1, for all threads of a group of warps, through a word of shared memory. */
  __device__ int parity(int* word, int group) const {
    if (threadIdx.x % 128 == 0) *word = started >= static_cast<u32>(groups);
    block_sync(1 + group, 128);
    return *word;
  }
};

template <class Shape>
struct Merger {
  static constexpr int kQuads = Shape::kHeadDim / 4;
  static constexpr int kPerLane = (kQuads + 31) / 32;
  static constexpr int kWarps = Shape::kGroups * 4;
  static constexpr int kAtOnce = 32; /* partials that a warp has in shared memory, one a lane */
  static constexpr int kPartialBytes = Shape::kHeadDim * 4;
  static_assert(kWarps * kAtOnce * kPartialBytes <= sizeof(Shape::Shared::bulk), "too little room");

  const Attention& a;
  u32 buffer; /* this warp's part of the bulk of shared memory, which is free by then */
  int warp, lane;

  /* Filled by open(). */
  const Merge* merges;
  int first, count;

  /* Finds this worker's share; called early, so that its records are in L2 when they are needed. */
  __device__ void open() {
    const Worker* worker = worker_of(a, blockIdx.x);
    const int4 head = __ldg(reinterpret_cast<const int4*>(worker));
    merges = reinterpret_cast<const Merge*>(a.image) + __ldg(&worker->merges);
    first = head.z;
    count = head.w;
    const int i = (warp * 32 + lane) * 8;
    if (i * Shape::kGroup < count) prefetch_l2(merges + first / Shape::kGroup + i);
  }

  __device__ Merge merge_of(int vector) const {
    const int4 v = __ldg(reinterpret_cast<const int4*>(merges + vector / Shape::kGroup));
    return {v.x, v.y, v.z, v.w};
  }

  /* Waits for all partials of this worker's vectors. */
  __device__ void wait(int parity) const {
    const int from = first / Shape::kGroup, to = (first + count - 1) / Shape::kGroup;
#pragma unroll 1
    for (int i = from + warp * 32 + lane; i <= to; i += kWarps * 32) {
      const int4 merge = __ldg(reinterpret_cast<const int4*>(merges + i));
      int* counters = a.counters + merge.w * 2;
      counters[parity ^ 1] = 0;
      Patience patience;
      while (load_relaxed(counters + parity) < merge.z)
        if (patience.ends(a.abort_flag, Shape::kAbortMerge)) break;
    }
    fence_gpu();
    block_sync(kBarrierMerge, kWarps * 32);
  }

  /*
   * Vectors `vector` to vector + vectors - 1, each with `width` lanes (a power of two) for its
   * partials from `slot` on: every lane looks after one partial's state and address, all lanes
   * together copy and add. With more partials than lanes, o, top and sum carry over.
   */
  __device__ void add(int vector, int vectors, int width, int slot, float4 (&o)[kPerLane],
                      float& carried_top, float& carried_sum) const {
    const int mine = lane / width;
    const Merge merge = merge_of(first + vector + (mine < vectors ? mine : 0));
    const int head = (first + vector + mine) % Shape::kGroup;
    const int kv_head = merge.counter % a.kv_heads;
    const int part = slot + lane % width;
    const bool real = mine < vectors && part < merge.count;
    const u64 index =
        (static_cast<u64>(merge.slot + part) * a.kv_heads + kv_head) * Shape::kGroup + head;
    const float* from = a.partial + index * Shape::kHeadDim;
    float2 state = make_float2(-1e30f, 0.0f);
    if (real) state = load_l2(a.partial_sum + index);
    const u32 used = __ballot_sync(~0u, real);
#pragma unroll 4
    for (int i = 0; i < vectors * width; i++) {
      const float* source = reinterpret_cast<const float*>(
          __shfl_sync(~0u, reinterpret_cast<u64>(from), i));
      if (!(used >> i & 1)) continue;
      for (int quad = lane; quad < kQuads; quad += 32)
        copy16(buffer + i * kPartialBytes + quad * 16, source + quad * 4);
    }
    copy_commit();

    float top = width == 32 ? fmaxf(state.x, carried_top) : state.x;
    for (int offset = width / 2; offset > 0; offset /= 2)
      top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
    const float weight = real ? exp2_fast(state.x - top) : 0.0f;
    float sum = state.y * weight;
    for (int offset = width / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    const float keep = exp2_fast(carried_top - top);
    carried_sum = sum + carried_sum * keep;
    carried_top = top;
    copy_wait<0>();
    __syncwarp();

    const bool last = slot + width >= merge.count;
    u16* to = a.out + static_cast<u64>(merge.row) * a.out_stride +
              (kv_head * Shape::kGroup + head) * Shape::kHeadDim;
    const float norm = carried_sum > 0.0f ? reciprocal(carried_sum) : 0.0f;
    for (int v = 0; v < vectors; v++) {
      const float scale = __shfl_sync(~0u, norm, v * width);
      u16* target = reinterpret_cast<u16*>(__shfl_sync(~0u, reinterpret_cast<u64>(to), v * width));
#pragma unroll
      for (int k = 0; k < kPerLane; k++) {
        o[k].x *= keep, o[k].y *= keep, o[k].z *= keep, o[k].w *= keep;
        if (width < 32) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
#pragma unroll 2
      for (int i = v * width; i < (v + 1) * width; i++) {
        const float w = __shfl_sync(~0u, weight, i);
        if (!(used >> i & 1)) continue;
#pragma unroll
        for (int k = 0; k < kPerLane; k++) {
          if (lane + k * 32 >= kQuads) continue;
          const float4 p = load_shared(buffer + i * kPartialBytes + (lane + k * 32) * 16);
          o[k].x += p.x * w, o[k].y += p.y * w, o[k].z += p.z * w, o[k].w += p.w * w;
        }
      }
      if (!last) continue;
#pragma unroll
      for (int k = 0; k < kPerLane; k++) {
        if (lane + k * 32 >= kQuads) continue;
        const u32 lo = pack16(o[k].x * scale, o[k].y * scale);
        const u32 hi = pack16(o[k].z * scale, o[k].w * scale);
        *reinterpret_cast<uint2*>(target + (lane + k * 32) * 4) = make_uint2(lo, hi);
      }
    }
    __syncwarp(); /* before the buffer is written again */
  }

  __device__ void run(const LaunchCount& launch, int* word) const {
    if (count == 0) return;
    wait(launch.parity(word, warp / 4));
    /* Vectors that a warp takes at once: as many as have lanes for all of their partials. */
    const int share = (count + kWarps - 1) / kWarps;
    const int end = (warp + 1) * share < count ? (warp + 1) * share : count;
#pragma unroll 1
    for (int vector = warp * share; vector < end;) {
      int vectors = end - vector < 8 ? end - vector : 8;
      int most = 0;
#pragma unroll 1
      for (int v = 0; v < vectors; v++) {
        const int partials = merge_of(first + vector + v).count;
        most = partials > most ? partials : most;
      }
      int width = 2;
      while (width < most && width < 32) width *= 2;
      if (vectors * width > 32) vectors = 32 / width;
      const int slots = width < 32 ? 1 : most;
      float4 o[kPerLane];
#pragma unroll
      for (int k = 0; k < kPerLane; k++) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      float top = -1e30f, sum = 0.0f;
#pragma unroll 1
      for (int slot = 0; slot < slots; slot += 32) add(vector, vectors, width, slot, o, top, sum);
      vector += vectors;
    }
  }
};
