/*
 * The end of a product in linear.cu: once all blocks have written their parts of the sums, parts
 * are added up and become the next product's input. All threads here are of computing warps.
 */
#pragma once
#include "linear.cuh"

__device__ __forceinline__ u64 load_relaxed(const u64* p) {
  u64 v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void add_relaxed(u64* p, u64 v) {
  asm volatile("red.relaxed.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory");
}
__device__ __forceinline__ void await_count(const u64* count, u64 least, int* abort_flag,
                                            int code) {
  Patience patience;
  while (load_relaxed(count) < least)
    if (patience.ends(abort_flag, code)) return;
}

__device__ __forceinline__ void sync_computing() { block_sync(2, kThreads); }

/* Output `n` of a row: the sum of all blocks' parts. */
__device__ __forceinline__ float sum_of(const Linear& a, const Share& share, int row, int n) {
  const int tile = n / kTile;
  const int first = share.first_owner(tile), last = share.last_owner(tile);
  const float* from = part_of(a, first, tile) + row * kTile + n % kTile;
  float sum = 0.0f;
  for (int b = first; b <= last; b += 4) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = b + i <= last ? __ldcg(from + i * kRows * kTile) : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) sum += v[i];
    from += 4 * kRows * kTile;
  }
  return sum;
}

/* Outputs `n` to n + 3. */
__device__ __forceinline__ float4 sum4_of(const Linear& a, const Share& share, int row, int n) {
  const int tile = n / kTile;
  const int first = share.first_owner(tile), last = share.last_owner(tile);
  const float4* from =
      reinterpret_cast<const float4*>(part_of(a, first, tile) + row * kTile + n % kTile);
  constexpr int kStep = kRows * kTile / 4;
  float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  for (int b = first; b <= last; b += 8) {
    float4 v[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
      v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (b + i <= last) v[i] = load_l2(from + i * kStep);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      sum.x += v[i].x, sum.y += v[i].y, sum.z += v[i].z, sum.w += v[i].w;
    from += 8 * kStep;
  }
  return sum;
}

/* The tile whose second part this block has, if any: one block for each tile that is split. */
__device__ __forceinline__ void reduce_plain(const Linear& a, const Phase& phase,
                                             const Share& share) {
  const int unit = share.begin(share.block), tile = unit / share.chunks;
  if (unit == share.begin(share.block + 1) || unit % share.chunks == 0) return;
  if (share.first_owner(tile) + 1 != share.block) return;
  for (int i = threadIdx.x; i < a.rows * (kTile / 4); i += kThreads) {
    const int row = i / (kTile / 4), n = tile * kTile + i % (kTile / 4) * 4;
    if (n >= phase.outputs) continue;
    const float4 v = sum4_of(a, share, row, n);
    *reinterpret_cast<float4*>(phase.out + static_cast<u64>(row) * phase.outputs + n) = v;
  }
}

/* Row `row` of the residual stream, and its norm. */
__device__ __forceinline__ void reduce_residual(const Linear& a, const Phase& phase,
                                                const Share& share, float* sums, int row) {
  constexpr int kQuads = kHiddenMax / (kThreads * 4);
  const int hidden = phase.outputs;
  float* x = phase.out + static_cast<u64>(row) * hidden;
  float4 v[kQuads];
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kQuads; k++) {
    const int n = (k * kThreads + threadIdx.x) * 4;
    if (n >= hidden) continue;
    const float4 old = load_l2(reinterpret_cast<const float4*>(x + n));
    v[k] = sum4_of(a, share, row, n);
    v[k].x += old.x, v[k].y += old.y, v[k].z += old.z, v[k].w += old.w;
    *reinterpret_cast<float4*>(x + n) = v[k];
    squares += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
  }
  if (phase.norm == nullptr) return;
  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
  sync_computing();
  squares = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; w++) squares += sums[w];
  const float factor = rsqrtf(squares / hidden + a.epsilon);
  u16* to = phase.out16 + static_cast<u64>(row) * hidden;
#pragma unroll
  for (int k = 0; k < kQuads; k++) {
    const int n = (k * kThreads + threadIdx.x) * 4;
    if (n >= hidden) continue;
    const float4 w = *reinterpret_cast<const float4*>(phase.norm + n);
    *reinterpret_cast<uint2*>(to + n) =
        make_uint2(store16_pair(v[k].x * factor * w.x, v[k].y * factor * w.y),
                   store16_pair(v[k].z * factor * w.z, v[k].w * factor * w.w));
  }
}

/* This thread's share of silu(gate) * up. */
__device__ __forceinline__ void reduce_swiglu(const Linear& a, const Phase& phase,
                                              const Share& share) {
  const int width = phase.outputs / 2, quads = width / 4;
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < a.rows * quads;
       i += gridDim.x * kThreads) {
    const int row = i / quads, n = i % quads * 4;
    const float4 g = sum4_of(a, share, row, n), u = sum4_of(a, share, row, width + n);
    *reinterpret_cast<uint2*>(phase.out16 + static_cast<u64>(row) * width + n) =
        make_uint2(store16_pair(silu(g.x) * u.x, silu(g.y) * u.y),
                   store16_pair(silu(g.z) * u.z, silu(g.w) * u.w));
  }
}

/* This warp's share of the heads of q, k and v. */
__device__ __forceinline__ void reduce_rotate(const Linear& a, const Share& share) {
  const int heads = a.rotate.heads + 2 * a.rotate.kv_heads;
  for (int i = blockIdx.x * kWarps + threadIdx.x / 32; i < a.rows * heads;
       i += gridDim.x * kWarps) {
    const int row = i / heads;
    rotate_head(a.rotate, row, i % heads, threadIdx.x % 32,
                [&](int n) { return sum_of(a, share, row, n); });
  }
}

/* Tells that this block's parts are written, waits for all others' and takes its share of them. */
__device__ __forceinline__ void finish_phase(const Linear& a, const Phase& phase,
                                             const Share& share, const u64* arrived, float* sums,
                                             int p) {
  const bool works = phase.kind != kResidual || static_cast<int>(blockIdx.x) < a.rows;
  sync_computing();
  if (threadIdx.x == 0) {
    fence_gpu();
    add_relaxed(&a.arrived[0], 1);
    if (works) {
      await_count(&a.arrived[0], arrived[0] + static_cast<u64>(p + 1) * gridDim.x, a.abort_flag,
                  kAbortPartials);
      fence_gpu();
    }
  }
  if (works) {
    sync_computing();
    if (phase.kind == kPlain) reduce_plain(a, phase, share);
    else if (phase.kind == kResidual)
      for (int row = blockIdx.x; row < a.rows; row += gridDim.x) {
        reduce_residual(a, phase, share, sums, row);
        sync_computing(); /* before `sums` is written again */
      }
    else if (phase.kind == kSwiglu) reduce_swiglu(a, phase, share);
    else reduce_rotate(a, share);
    sync_computing();
  }
  if (threadIdx.x == 0 && p + 1 < a.phase_count) {
    fence_gpu();
    add_relaxed(&a.arrived[1], 1);
  }
}
