/*
 * The two products of attention by wgmma (sm_90a): a warpgroup owns 64 query vectors. The
 * accumulators have the same layout as those of product-mma.cuh.
 *
 * Operands lie in shared memory as 8 x 8 blocks of 128 contiguous bytes (no swizzle). For K and Q
 * (K-major) the leading offset steps over 8 dimensions and the stride offset over 8 rows; for V
 * (MN-major) the stride offset steps over 8 dimensions and the leading offset over 8 tokens.
 */
#pragma once
#include "common.cuh"

#if FF_HOPPER

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/* A matrix descriptor without swizzle; all in bytes. */
__device__ __forceinline__ u64 wgmma_descriptor(u32 address, u32 leading, u32 stride) {
  return static_cast<u64>((address & 0x3ffffu) >> 4) | static_cast<u64>(leading >> 4) << 16 |
         static_cast<u64>(stride >> 4) << 32;
}
/* The descriptor moved on by `bytes`. */
__device__ __forceinline__ u64 wgmma_advance(u64 descriptor, u32 bytes) {
  return descriptor + (bytes >> 4);
}

#if FF_BF16
#define FF_WGMMA_TYPE "bf16.bf16"
#else
#define FF_WGMMA_TYPE "f16.f16"
#endif

__device__ __forceinline__ void wgmma_ss(float (&d)[4][4], u64 a, u64 b, u32 add) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %18, 0;"
               " wgmma.mma_async.sync.aligned.m64n32k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
               "}, %16, %17, p, 1, 1, 0, 0; }"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
                 "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])
               : "l"(a), "l"(b), "r"(add));
}

/* A from registers, B K-major: one k16 step of Q K^T; `add` 0 starts anew. */
__device__ __forceinline__ void wgmma_rs_k(float (&d)[8][4], const u32 (&a)[4], u64 b, u32 add) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0;"
               " wgmma.mma_async.sync.aligned.m64n64k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
               "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0; }"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
                 "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
                 "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
                 "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
                 "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
                 "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[2][4], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7"
               "}, {%8, %9, %10, %11}, %12, 1, 1, 1, 1;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[4][4], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
               "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 1;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
                 "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[8][4], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
               "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
                 "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
                 "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
                 "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
                 "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
                 "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_rs(float (&d)[16][4], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." FF_WGMMA_TYPE " {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
               "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
               "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]),
                 "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]), "+f"(d[1][3]),
                 "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]),
                 "+f"(d[3][0]), "+f"(d[3][1]), "+f"(d[3][2]), "+f"(d[3][3]),
                 "+f"(d[4][0]), "+f"(d[4][1]), "+f"(d[4][2]), "+f"(d[4][3]),
                 "+f"(d[5][0]), "+f"(d[5][1]), "+f"(d[5][2]), "+f"(d[5][3]),
                 "+f"(d[6][0]), "+f"(d[6][1]), "+f"(d[6][2]), "+f"(d[6][3]),
                 "+f"(d[7][0]), "+f"(d[7][1]), "+f"(d[7][2]), "+f"(d[7][3]),
                 "+f"(d[8][0]), "+f"(d[8][1]), "+f"(d[8][2]), "+f"(d[8][3]),
                 "+f"(d[9][0]), "+f"(d[9][1]), "+f"(d[9][2]), "+f"(d[9][3]),
                 "+f"(d[10][0]), "+f"(d[10][1]), "+f"(d[10][2]), "+f"(d[10][3]),
                 "+f"(d[11][0]), "+f"(d[11][1]), "+f"(d[11][2]), "+f"(d[11][3]),
                 "+f"(d[12][0]), "+f"(d[12][1]), "+f"(d[12][2]), "+f"(d[12][3]),
                 "+f"(d[13][0]), "+f"(d[13][1]), "+f"(d[13][2]), "+f"(d[13][3]),
                 "+f"(d[14][0]), "+f"(d[14][1]), "+f"(d[14][2]), "+f"(d[14][3]),
                 "+f"(d[15][0]), "+f"(d[15][1]), "+f"(d[15][2]), "+f"(d[15][3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <int kHeadDim, int kTile>
struct WgmmaProduct {
  static constexpr int kGroupBytes = kHeadDim * 32;

  /* Q fits into registers, which halves what Q K^T reads from shared memory. */
  static constexpr bool kHoldsQueries = kHeadDim <= 128 && kTile == 64;
  static constexpr int kQuerySteps = kHoldsQueries ? kHeadDim / 16 : 1;

  /* Issues s = Q K^T with Q as A fragments; the caller waits. */
  __device__ static void scores(float (&s)[kTile / 8][4], const u32 (&q)[kQuerySteps][4], u32 kv) {
    const u64 b = wgmma_descriptor(kv, 128, kGroupBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kQuerySteps; step++)
      wgmma_rs_k(s, q[step], wgmma_advance(b, step * 256), step > 0);
    wgmma_commit();
  }

  /* The same with Q in shared memory. */
  __device__ static void scores(float (&s)[kTile / 8][4], u32 q, u32 kv) {
    const u64 a = wgmma_descriptor(q, 128, kHeadDim * 16);
    const u64 b = wgmma_descriptor(kv, 128, kGroupBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; step++)
      wgmma_ss(s, wgmma_advance(a, step * 256), wgmma_advance(b, step * 256), step > 0);
    wgmma_commit();
  }

  /* The columns kFirst to kFirst + kColumns of o += P V for 16 tokens. */
  template <int kFirst, int kColumns>
  __device__ static void columns(float (&o)[kHeadDim / 8][4], const u32 (&p)[4], u64 b) {
    auto& part = reinterpret_cast<float(&)[kColumns / 8][4]>(o[kFirst / 8]);
    wgmma_rs(part, p, wgmma_advance(b, kFirst * 16));
  }

  /* Issues o += P V; the caller waits. */
  __device__ static void values(float (&o)[kHeadDim / 8][4], const u32 (&p)[kTile / 16][4],
                                u32 kv) {
    const u64 v = wgmma_descriptor(kv + kHeadDim * 16, kGroupBytes, 128);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < kTile / 16; step++) {
      const u64 b = wgmma_advance(v, step * 2 * kGroupBytes);
      if constexpr (kHeadDim == 256) {
        columns<0, 128>(o, p[step], b);
        columns<128, 128>(o, p[step], b);
      } else if constexpr (kHeadDim == 128) {
        columns<0, 128>(o, p[step], b);
      } else {
        columns<0, 64>(o, p[step], b);
        if constexpr (kHeadDim == 80) columns<64, 16>(o, p[step], b);
        if constexpr (kHeadDim == 96) columns<64, 32>(o, p[step], b);
      }
    }
    wgmma_commit();
  }
};
#endif
