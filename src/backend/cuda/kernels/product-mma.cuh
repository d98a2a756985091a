/*
 * The two products of attention by mma.sync (sm_80 and later). A group of four warps owns 64
 * query vectors, 16 a warp. Accumulators have the layout of the m16n8 fragments: element
 * [block][0, 1] is row lane / 4, [block][2, 3] is row lane / 4 + 8, columns 8 * block +
 * 2 * (lane % 4) + {0, 1}.
 *
 * Shared memory holds 8 x 8 blocks of 128 contiguous bytes (8 rows of 16 bytes), so that every
 * ldmatrix reads without bank conflicts whatever the head dimension.
 */
#pragma once
#include "common.cuh"

#if FF_BF16 && !FF_KV8
#define FF_MMA_TYPE "bf16.bf16"
#else
#define FF_MMA_TYPE "f16.f16"
#endif

__device__ __forceinline__ void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." FF_MMA_TYPE
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix4(u32 (&v)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4_transposed(u32 (&v)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
               : "r"(address)
               : "memory");
}

template <int kHeadDim, int kTile>
struct MmaProduct {
  static constexpr int kChunks = kHeadDim / 8;
  static constexpr int kGroupBytes = kHeadDim * 32; /* 8 tokens: K, then V */

  /* One k16 step of this warp's 16 rows as an A fragment. */
  __device__ static void queries(u32 (&a)[4], u32 q, int step, int warp, int lane) {
    const int matrix = lane >> 3;
    ldmatrix4(a, q + ((warp * 2 + (matrix & 1)) * kChunks + (matrix >> 1) + step * 2) * 128 +
                     (lane & 7) * 16);
  }

  /* s = Q K^T for this warp's 16 rows. q: the group's 64 rows, kv: the tile. */
  __device__ static void scores(float (&s)[kTile / 8][4], u32 q, u32 kv, int warp, int lane) {
#pragma unroll
    for (int b = 0; b < kTile / 8; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[b][i] = 0.0f;
    const int matrix = lane >> 3;
    const u32 row = (lane & 7) * 16;
    /* Two token blocks at once: matrices are (block, chunk) pairs of one k16 step. */
    const u32 ka = kv + (matrix >> 1) * kGroupBytes + (matrix & 1) * 128 + row;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step++) {
      u32 a[4];
      queries(a, q, step, warp, lane);
#pragma unroll
      for (int b = 0; b < kTile / 8; b += 2) {
        u32 k[4];
        ldmatrix4(k, ka + b * kGroupBytes + step * 256);
        mma_16816(s[b], a, k[0], k[1]);
        mma_16816(s[b + 1], a, k[2], k[3]);
      }
    }
  }

  /* s = Q K^T for 16 tokens at `kv`, the query fragments in registers. */
  template <int kSteps>
  __device__ static void narrow_scores(float (&s)[2][4], const u32 (&q)[kSteps][4], u32 kv,
                                       int lane) {
    float even[2][4], odd[2][4]; /* two chains each: half the latency */
#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) even[b][i] = odd[b][i] = 0.0f;
    const int matrix = lane >> 3;
    const u32 ka = kv + (matrix >> 1) * kGroupBytes + (matrix & 1) * 128 + (lane & 7) * 16;
#pragma unroll
    for (int step = 0; step < kSteps; step++) {
      u32 k[4];
      ldmatrix4(k, ka + step * 256);
      mma_16816(step % 2 ? odd[0] : even[0], q[step], k[0], k[1]);
      mma_16816(step % 2 ? odd[1] : even[1], q[step], k[2], k[3]);
    }
#pragma unroll
    for (int b = 0; b < 2; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[b][i] = even[b][i] + odd[b][i];
  }

  /* o += P V for 16 tokens. */
  __device__ static void narrow_values(float (&o)[kHeadDim / 8][4], const u32 (&p)[1][4], u32 kv,
                                       int lane) {
    const int matrix = lane >> 3;
    const u32 va = kv + (matrix & 1) * kGroupBytes + kHeadDim * 16 + (matrix >> 1) * 128 +
                   (lane & 7) * 16;
#pragma unroll
    for (int c = 0; c < kChunks; c += 2) {
      u32 v[4];
      ldmatrix4_transposed(v, va + c * 128);
      mma_16816(o[c], p[0], v[0], v[1]);
      mma_16816(o[c + 1], p[0], v[2], v[3]);
    }
  }

  /* o += P V; p holds P as A fragments, one set of four registers for 16 tokens. */
  __device__ static void values(float (&o)[kHeadDim / 8][4], const u32 (&p)[kTile / 16][4], u32 kv,
                                int lane) {
    const int matrix = lane >> 3;
    const u32 va = kv + (matrix & 1) * kGroupBytes + kHeadDim * 16 + (matrix >> 1) * 128 +
                   (lane & 7) * 16;
#pragma unroll
    for (int step = 0; step < kTile / 16; step++) {
#pragma unroll
      for (int c = 0; c < kChunks; c += 2) {
        u32 v[4];
        ldmatrix4_transposed(v, va + step * 2 * kGroupBytes + c * 128);
        mma_16816(o[c], p[step], v[0], v[1]);
        mma_16816(o[c + 1], p[step], v[2], v[3]);
      }
    }
  }
};
