/*
 * Merging: after its items every worker merges its share of the split rows, as soon as all their
 * partials are there. The partials of one row: o = sum of o_i 2^(m_i - m) over sum of l_i
 * 2^(m_i - m), m the largest maximum. Shares are counted in vectors (row, query head).
 */
#pragma once
#include "consumer.cuh"

/*
 * Launches alternate between two sets of counters: one counts, the other is cleared. Which one it
 * is follows from the number of groups of warps that have started so far, over all launches. One
 * thread of each group counts, and the group reads what it found in a word of shared memory.
 */
struct LaunchCount {
  const Attention& a;
  int* word;           /* of the group, in shared memory */
  int groups_of_block;

  /* Counts this group; the answer takes a while. */
  __device__ u32 start() const {
    if (threadIdx.x % 128 != 0) return 0;
    return atomicInc(reinterpret_cast<u32*>(a.abort_flag + 1), 2 * gridDim.x * groups_of_block - 1);
  }

  __device__ void keep(u32 started) const {
    if (threadIdx.x % 128 == 0) *word = started >= gridDim.x * groups_of_block;
  }

  /* 0 or 1, for all threads of the group. */
  __device__ static int parity(const int* word, int group) {
    block_sync(1 + group, 128);
    return *reinterpret_cast<const volatile int*>(word);
  }
};

template <class Shape>
struct Merger {
  static constexpr int kQuads = Shape::kHeadDim / 4;
  static constexpr int kPerLane = (kQuads + 31) / 32;
  static constexpr int kWarps = Shape::kGroups * 4;
  static constexpr int kPartialBytes = Shape::kHeadDim * 4;
  /* Partials for which loading all at once pays; without setmaxnreg registers are too few. */
  static constexpr int kDirect = FF_PORTABLE ? 0 : 8;
  static constexpr int kNoLimit = 0x7fffffff;
  static constexpr int kRoom = sizeof(Shape::Shared::bulk) / (kWarps * kPartialBytes);
  /* Partials that a warp has in shared memory, one a lane. */
  static constexpr int kAtOnce = kRoom >= 32 ? 32 : 16;
  static_assert(kRoom >= 16, "too little room");

  const Attention& a;
  u32 buffer; /* this warp's part of the bulk of shared memory, which is free by then */
  int warp, lane;

  /* Filled by open(). */
  const Merge* merges;
  int first, count;

  /* Finds this worker's share: early, so that its records are in L2, and when they are needed. */
  __device__ void open() {
    const Worker* worker = worker_of(a, blockIdx.x);
    asm volatile("" : "+l"(worker)); /* read again: registers are scarce in between */
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
   * together copy and add. With more partials than lanes, o, top and sum carry over. `limit` ends
   * the slots; a state that does not cover all of them stays in this warp's buffer.
   */
  __device__ void add(int vector, int vectors, int width, int slot, int limit,
                      float4 (&o)[kPerLane], float& carried_top, float& carried_sum) const {
    const int mine = lane / width;
    const Merge merge = merge_of(first + vector + (mine < vectors ? mine : 0));
    const int head = (first + vector + mine) % Shape::kGroup;
    const int kv_head = merge.counter % a.kv_heads;
    const int part = slot + lane % width;
    const int end = merge.count < limit ? merge.count : limit;
    const bool real = mine < vectors && part < end;
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

    float top = width == kAtOnce ? fmaxf(state.x, carried_top) : state.x;
    for (int offset = width / 2; offset > 0; offset /= 2)
      top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
    const float weight = real ? exp2_fast(state.x - top) : 0.0f;
    float sum = state.y * weight;
    for (int offset = width / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    const float keep = __shfl_sync(~0u, exp2_fast(carried_top - top), 0);
    carried_sum = sum + carried_sum * keep;
    carried_top = top;
    copy_wait<0>();
    __syncwarp();

    const bool last = slot + width >= end;
    const float norm = carried_sum > 0.0f ? reciprocal(carried_sum) : 0.0f;
    for (int v = 0; v < vectors; v++) {
      const float scale = __shfl_sync(~0u, norm, v * width);
#pragma unroll
      for (int k = 0; k < kPerLane; k++) {
        o[k].x *= keep, o[k].y *= keep, o[k].z *= keep, o[k].w *= keep;
        if (width < kAtOnce) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
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
      if (limit != kNoLimit) {
        __syncwarp();
        keep_state(o, carried_top, carried_sum);
        break;
      }
      const int from_lane = v * width;
      const Merge theirs = {__shfl_sync(~0u, merge.row, from_lane), 0, 0,
                            __shfl_sync(~0u, merge.counter, from_lane)};
      write(theirs, __shfl_sync(~0u, head, from_lane), o, scale);
    }
    __syncwarp(); /* before the buffer is written again */
  }

  /* One vector with few partials: everything is loaded at once, into registers. */
  __device__ void direct(int vector) const {
    const Merge merge = merge_of(first + vector);
    const int head = (first + vector) % Shape::kGroup;
    const int kv_head = merge.counter % a.kv_heads;
    const u64 step = static_cast<u64>(a.kv_heads) * Shape::kGroup;
    const u64 index = (static_cast<u64>(merge.slot) * a.kv_heads + kv_head) * Shape::kGroup + head;
    float4 o[kPerLane];
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kPerLane; k++) {
      const int quad = lane + k * 32 < kQuads ? lane + k * 32 : 0;
      float2 state[kDirect];
      float4 part[kDirect];
#pragma unroll
      for (int i = 0; i < kDirect; i++) {
        state[i] = make_float2(-1e30f, 0.0f);
        part[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= merge.count) continue;
        state[i] = load_l2(a.partial_sum + index + i * step);
        part[i] = load_l2(reinterpret_cast<const float4*>(
                              a.partial + (index + i * step) * Shape::kHeadDim) + quad);
      }
      float top = state[0].x;
#pragma unroll
      for (int i = 1; i < kDirect; i++) top = fmaxf(top, state[i].x);
      sum = 0.0f;
      o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
      for (int i = 0; i < kDirect; i++) {
        const float w = exp2_fast(state[i].x - top);
        sum += state[i].y * w;
        o[k].x += part[i].x * w, o[k].y += part[i].y * w;
        o[k].z += part[i].z * w, o[k].w += part[i].w * w;
      }
    }
    write(merge, head, o, sum > 0.0f ? reciprocal(sum) : 0.0f);
  }

  /* In the first two places of the buffer: o, and top and sum. */
  __device__ void keep_state(const float4 (&o)[kPerLane], float top, float sum) const {
#pragma unroll
    for (int k = 0; k < kPerLane; k++)
      if (lane + k * 32 < kQuads) store_shared(buffer + (lane + k * 32) * 16, o[k]);
    if (lane == 0) store_shared(buffer + kPartialBytes, make_float4(top, sum, 0.0f, 0.0f));
  }

  /* One vector with many partials: the warps share its slots, and `sharers` states remain. */
  __device__ void run_shared(int sharers) const {
    const int mine = warp / sharers, part = warp % sharers;
    const Merge merge = merge_of(first + (mine < count ? mine : 0));
    const int each = (merge.count + sharers - 1) / sharers;
    const int begin = part * each, end = begin + each < merge.count ? begin + each : merge.count;
    float4 o[kPerLane];
#pragma unroll
    for (int k = 0; k < kPerLane; k++) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float top = -1e30f, sum = 0.0f;
    if (mine < count && begin < end) {
#pragma unroll 1
      for (int slot = begin; slot < end; slot += kAtOnce)
        add(mine, 1, kAtOnce, slot, end, o, top, sum);
    } else {
      keep_state(o, top, sum);
    }
    block_sync(kBarrierMerge, kWarps * 32);
    if (part != 0 || mine >= count) return;
    float4 total[kPerLane];
    float high = -1e30f;
    sum = 0.0f;
#pragma unroll
    for (int k = 0; k < kPerLane; k++) total[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 1
    for (int s = 0; s < sharers; s++) {
      const u32 from = buffer + s * kAtOnce * kPartialBytes;
      const float4 state = load_shared(from + kPartialBytes);
      const float next = fmaxf(high, state.x);
      const float keep = exp2_fast(high - next), w = exp2_fast(state.x - next);
      high = next;
      sum = sum * keep + state.y * w;
#pragma unroll
      for (int k = 0; k < kPerLane; k++) {
        if (lane + k * 32 >= kQuads) continue;
        const float4 p = load_shared(from + (lane + k * 32) * 16);
        total[k].x = total[k].x * keep + p.x * w, total[k].y = total[k].y * keep + p.y * w;
        total[k].z = total[k].z * keep + p.z * w, total[k].w = total[k].w * keep + p.w * w;
      }
    }
    write(merge, (first + mine) % Shape::kGroup, total, sum > 0.0f ? reciprocal(sum) : 0.0f);
  }

  __device__ void write(const Merge& merge, int head, const float4 (&o)[kPerLane],
                        float scale) const {
    const int kv_head = merge.counter % a.kv_heads;
    u16* to = a.out + static_cast<u64>(merge.row) * a.out_stride +
              (kv_head * Shape::kGroup + head) * Shape::kHeadDim;
#pragma unroll
    for (int k = 0; k < kPerLane; k++) {
      if (lane + k * 32 >= kQuads) continue;
      const u32 lo = pack16(o[k].x * scale, o[k].y * scale);
      const u32 hi = pack16(o[k].z * scale, o[k].w * scale);
      *reinterpret_cast<uint2*>(to + (lane + k * 32) * 4) = make_uint2(lo, hi);
    }
  }

  __device__ void run(const int* word) const {
    if (count == 0) return;
    wait(LaunchCount::parity(word, warp / 4));
    if (count * 2 <= kWarps && merge_of(first).count > kAtOnce) {
      int sharers = 2;
      while (sharers * 2 * count <= kWarps) sharers *= 2;
      return run_shared(sharers);
    }
    /* Vectors that a warp takes at once: as many as have lanes for all of their partials. */
    const int share = (count + kWarps - 1) / kWarps;
    const int end = (warp + 1) * share < count ? (warp + 1) * share : count;
    if constexpr (kDirect > 0)
      if (share == 1 && warp < count && merge_of(first + warp).count <= kDirect)
        return direct(warp);
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
      while (width < most && width < kAtOnce) width *= 2;
      if (vectors * width > kAtOnce) vectors = kAtOnce / width;
      const int slots = width < kAtOnce ? 1 : most;
      float4 o[kPerLane];
#pragma unroll
      for (int k = 0; k < kPerLane; k++) o[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      float top = -1e30f, sum = 0.0f;
#pragma unroll 1
      for (int slot = 0; slot < slots; slot += kAtOnce)
        add(vector, vectors, width, slot, kNoLimit, o, top, sum);
      vector += vectors;
    }
  }
};
