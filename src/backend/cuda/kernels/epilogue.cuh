/*
 * The end of an item: states of both groups are combined, and rows are written to the output or
 * to their partial slot, of which the row's merge is told.
 */
#pragma once
#include "merge.cuh"


template <class Shape>
struct Epilogue {
  using C = Consumer<Shape>;
  static constexpr int kBlocks = C::kBlocks;

  C& c;
  bool state_used = false; /* by an earlier item */

  /* Adds group 1's state to group 0's. Returns whether this group holds the result. */
  __device__ bool combine() {
    const int tiles = (c.item.entry_count + C::kEntries - 1) / C::kEntries;
    if (Shape::kGroups == 1 || c.shares_rows()) return true;
    if (tiles < 2) return c.group == 0;
    float4* state = reinterpret_cast<float4*>(c.shared.bulk.state) + c.warp * 32 + c.lane;
    float4* extra = state + kBlocks * 128;
    if (c.group == 1) {
      if (state_used) block_sync(kBarrierStateFree, 256);
      state_used = true;
#pragma unroll
      for (int b = 0; b < kBlocks; b++)
        state[b * 128] = make_float4(c.o[b][0], c.o[b][1], c.o[b][2], c.o[b][3]);
      *extra = make_float4(c.softmax.maximum[0], c.softmax.sum[0], c.softmax.maximum[1],
                           c.softmax.sum[1]);
      block_arrive(kBarrierStateFull, 256);
      return false;
    }
    /* Only now, not right after reading: no arrival is left over when the block ends. */
    if (state_used) block_arrive(kBarrierStateFree, 256);
    state_used = true;
    block_sync(kBarrierStateFull, 256);
    const float4 other = *extra;
    float mine[2], theirs[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float m = half == 0 ? other.x : other.z, l = half == 0 ? other.y : other.w;
      const float top = fmaxf(c.softmax.maximum[half], m);
      mine[half] = exp2_fast(c.softmax.maximum[half] - top);
      theirs[half] = exp2_fast(m - top);
      c.softmax.maximum[half] = top;
      c.softmax.sum[half] = c.softmax.sum[half] * mine[half] + l * theirs[half];
    }
#pragma unroll
    for (int b = 0; b < kBlocks; b++) {
      const float4 v = state[b * 128];
      c.o[b][0] = c.o[b][0] * mine[0] + v.x * theirs[0];
      c.o[b][1] = c.o[b][1] * mine[0] + v.y * theirs[0];
      c.o[b][2] = c.o[b][2] * mine[1] + v.z * theirs[1];
      c.o[b][3] = c.o[b][3] * mine[1] + v.w * theirs[1];
    }
    return true;
  }

  __device__ void write() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (c.rows.row(half) == Rows<Shape>::kPadding) continue;
      const int head = c.rows.head_of(half);
      const int slot = c.rows.slot[half];
      if constexpr (Shape::kKv8) {
        write_kv8(half, slot, head);
        continue;
      }
      const int column = (c.lane & 3) * 2;
      if (slot == -1) {
        const float norm = c.softmax.sum[half] > 0.0f ? reciprocal(c.softmax.sum[half]) : 0.0f;
        const u32 row = c.item.row_begin + c.rows.row(half);
        u16* to = c.a.out + static_cast<u64>(row) * c.a.out_stride +
                  (c.item.kv_head * Shape::kGroup + head) * Shape::kHeadDim + column;
#pragma unroll
        for (int b = 0; b < kBlocks; b++)
          *reinterpret_cast<u32*>(to + b * 8) =
              pack16(c.o[b][half * 2] * norm, c.o[b][half * 2 + 1] * norm);
      } else if (slot >= 0) {
        const u64 index =
            (static_cast<u64>(slot) * c.a.kv_heads + c.item.kv_head) * Shape::kGroup + head;
        float* to = c.a.partial + index * Shape::kHeadDim + column;
#pragma unroll
        for (int b = 0; b < kBlocks; b++)
          *reinterpret_cast<float2*>(to + b * 8) =
              make_float2(c.o[b][half * 2], c.o[b][half * 2 + 1]);
        if ((c.lane & 3) == 0)
          c.a.partial_sum[index] = make_float2(c.softmax.maximum[half], c.softmax.sum[half]);
      }
    }
  }

  /* One row of this thread with 8-bit KV: four consecutive numbers lie in two blocks. */
  __device__ void write_kv8(int half, int slot, int head) {
    const float scale = __ldg(c.a.kv_scale + c.item.kv_head * 2 + 1);
    const int column = (c.lane & 3) * 4;
    const u64 index =
        (static_cast<u64>(slot) * c.a.kv_heads + c.item.kv_head) * Shape::kGroup + head;
    float* partial = c.a.partial + index * Shape::kHeadDim + column;
    const u32 row = c.item.row_begin + c.rows.row(half);
    u16* out = c.a.out + static_cast<u64>(row) * c.a.out_stride +
               (c.item.kv_head * Shape::kGroup + head) * Shape::kHeadDim + column;
    if (slot >= 0) {
#pragma unroll
      for (int b = 0; b < kBlocks; b += 2)
        *reinterpret_cast<float4*>(partial + b * 8) =
            make_float4(c.o[b][half * 2] * scale, c.o[b + 1][half * 2] * scale,
                        c.o[b][half * 2 + 1] * scale, c.o[b + 1][half * 2 + 1] * scale);
      if ((c.lane & 3) == 0)
        c.a.partial_sum[index] = make_float2(c.softmax.maximum[half], c.softmax.sum[half]);
    } else if (slot == -1) {
      const float sum = c.softmax.sum[half];
      const float norm = sum > 0.0f ? scale * reciprocal(sum) : 0.0f;
#pragma unroll
      for (int b = 0; b < kBlocks; b += 2)
        *reinterpret_cast<uint2*>(out + b * 8) =
            make_uint2(pack16(c.o[b][half * 2] * norm, c.o[b + 1][half * 2] * norm),
                       pack16(c.o[b][half * 2 + 1] * norm, c.o[b + 1][half * 2 + 1] * norm));
    }
  }

  /* Tells the merges of this group's rows that one more partial is there. */
  __device__ void announce() {
    if (c.item.partials == 0) return;
    fence_gpu();
    const int parity = LaunchCount::parity(c.shared.parity + c.group, c.group);
    if (c.rows.counter < 0) return;
    add_relaxed(c.a.counters + (c.rows.counter * c.a.kv_heads + c.item.kv_head) * 2 + parity, 1);
  }
};
