/*
 * The two products of attention over 8-bit KV (e4m3), widened to f16 in registers for mma.sync.
 *
 * Shared memory holds 8 x 16 blocks of 128 contiguous bytes (8 tokens of 16 dimensions). What
 * ldmatrix gives a thread of such a block are four consecutive dimensions of K, or two
 * consecutive dimensions of two tokens of V. The order of dimensions within 16 of them does not
 * matter to Q K^T as long as Q has the same one; the epilogue puts that of O right.
 */
#pragma once
#include "product-mma.cuh"

#if FF_KV8

/* Two e4m3 numbers in the low half of a register as f16. */
__device__ __forceinline__ u32 widen(u32 pair) {
  u32 v;
  asm volatile("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.rn.f16x2.e4m3x2 %0, lo; }"
               : "=r"(v)
               : "r"(pair));
  return v;
}
__device__ __forceinline__ u32 widen_high(u32 pair) {
  u32 v;
  asm volatile("{ .reg .b16 lo, hi; mov.b32 {lo, hi}, %1; cvt.rn.f16x2.e4m3x2 %0, hi; }"
               : "=r"(v)
               : "r"(pair));
  return v;
}

template <int kHeadDim, int kTile>
struct Kv8Product {
  using Wide = MmaProduct<kHeadDim, kTile>;
  static constexpr int kGroupBytes = kHeadDim * 16; /* 8 tokens: K, then V */

  /* As f16, whatever the model's type is. */
  __device__ static u32 to_half(u32 pair) {
#if FF_BF16
    return pack_operand(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
#else
    return pair;
#endif
  }

  /*
   * Puts the 64 query vectors at `q` into the order of K's dimensions, in place: of 16 dimensions,
   * pairs 0, 2, 4, 6 to the first chunk of 8, the others to the second. For 128 threads.
   */
  __device__ static void arrange(u32 q, int thread) {
    constexpr int kGroups = kHeadDim / 16;
#pragma unroll 1
    for (int i = thread; i < 64 * kGroups; i += 128) {
      const int vector = i / kGroups, step = i % kGroups;
      const u32 at = q + ((vector >> 3) * (kHeadDim / 8) + step * 2) * 128 + (vector & 7) * 16;
      const float4 first = load_shared(at), second = load_shared(at + 128);
      const auto half = [](float v) { return __uint_as_float(to_half(__float_as_uint(v))); };
      store_shared(at, make_float4(half(first.x), half(first.z), half(second.x), half(second.z)));
      store_shared(at + 128,
                   make_float4(half(first.y), half(first.w), half(second.y), half(second.w)));
    }
  }

  /* s = Q K^T for this warp's 16 rows. q: the group's 64 rows, kv: the tile. */
  __device__ static void scores(float (&s)[kTile / 8][4], u32 q, u32 kv, int warp, int lane) {
#pragma unroll
    for (int b = 0; b < kTile / 8; b++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[b][i] = 0.0f;
    /* Four token blocks at once. */
    const u32 ka = kv + (lane >> 3) * kGroupBytes + (lane & 7) * 16;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step++) {
      if (step % 2 == 0) __syncwarp(); /* keeps the compiler from loading all at once: spills */
      u32 a[4];
      Wide::queries(a, q, step, warp, lane);
#pragma unroll
      for (int b = 0; b < kTile / 8; b += 4) {
        u32 k[4];
        ldmatrix4(k, ka + b * kGroupBytes + step * 128);
#pragma unroll
        for (int i = 0; i < 4; i++) mma_16816(s[b + i], a, widen(k[i]), widen_high(k[i]));
      }
    }
  }

  /* o += P V; blocks 2 c and 2 c + 1 of o are the even and odd ones of 16 dimensions. */
  __device__ static void values(float (&o)[kHeadDim / 8][4], const u32 (&p)[kTile / 16][4], u32 kv,
                                int lane) {
    /* Four token blocks at once: those of two k16 steps. */
    const u32 va = kv + (lane >> 3) * kGroupBytes + kHeadDim * 8 + (lane & 7) * 16;
#pragma unroll
    for (int step = 0; step < kTile / 16; step += 2) {
#pragma unroll
      for (int c = 0; c < kHeadDim / 16; c++) {
        if (c % 4 == 0) __syncwarp();
        u32 v[4];
        ldmatrix4_transposed(v, va + step * 2 * kGroupBytes + c * 128);
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = __byte_perm(v[i], 0, 0x3120);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const u32 first = v[half * 2], second = v[half * 2 + 1];
          mma_16816(o[c * 2], p[step + half], widen(first), widen(second));
          mma_16816(o[c * 2 + 1], p[step + half], widen_high(first), widen_high(second));
        }
      }
    }
  }
};

template <int kHeadDim, int kTile>
using PortableProduct = Kv8Product<kHeadDim, kTile>;
#else
template <int kHeadDim, int kTile>
using PortableProduct = MmaProduct<kHeadDim, kTile>;
#endif
