/*
 * Thin wrappers over the PTX that the kernels need: barriers in shared memory, asynchronous
 * copies, conversions. Nothing here needs the CUDA headers, so that NVRTC alone can compile it.
 *
 * Waits are bounded: a wait that does not end sets the abort flag and returns, after which every
 * other wait returns at once. A wrong plan is therefore an error and never a hung device.
 */
#pragma once

typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned long long u64;

#if __CUDA_ARCH__ >= 900
#define FF_HOPPER 1
#else
#define FF_HOPPER 0
#endif

/* 1: every lane of a warp gives a tile back, and not one for all, which racecheck cannot follow. */
#ifndef FF_EVERY_LANE
#define FF_EVERY_LANE 0
#endif

/* A wait of this long means a wrong plan or kernel; looked at every so many polls. */
constexpr u64 kWaitNsMax = 2000000000ull;
constexpr u32 kPollsPerCheck = 256;

__device__ __forceinline__ u32 smem_address(const void* p) {
  return static_cast<u32>(__cvta_generic_to_shared(p));
}

/* ---- barriers in shared memory ---- */

__device__ __forceinline__ void barrier_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}

__device__ __forceinline__ void barrier_arrive(u32 bar) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.shared::cta.b64 s, [%0]; }" ::"r"(bar) : "memory");
}

__device__ __forceinline__ bool barrier_test(u32 bar, u32 parity) {
  u32 done;
#if FF_HOPPER
  asm volatile(
      "{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;"
      " selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
#else
  asm volatile(
      "{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;"
      " selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
#endif
  return done != 0;
}

/* Sets the abort flag unless it is set already; the first code is kept. */
__device__ __noinline__ void raise_abort(int* abort_flag, int code) {
  atomicCAS(abort_flag, 0, code);
}

__device__ __forceinline__ u64 clock_ns() {
  u64 ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(ns));
  return ns;
}

/* Bounds a polling loop: true once it has to end. */
struct Patience {
  u32 polls = 0;
  u64 begin = 0;
  __device__ __forceinline__ bool ends(int* abort_flag, int code) {
    if (++polls % kPollsPerCheck != 0) return false;
    if (*reinterpret_cast<volatile int*>(abort_flag) != 0) return true;
    const u64 now = clock_ns();
    if (begin == 0) begin = now;
    if (now - begin < kWaitNsMax) return false;
    raise_abort(abort_flag, code);
    return true;
  }
};

__device__ __forceinline__ void barrier_wait(u32 bar, u32 parity, int* abort_flag, int code) {
  Patience patience;
  while (!barrier_test(bar, parity))
    if (patience.ends(abort_flag, code)) return;
}

/* Barrier `id` (1 to 15) among `threads` threads of the block. */
__device__ __forceinline__ void block_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void block_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* True in every one of the threads if `value` is true in all; synchronises like block_sync. */
__device__ __forceinline__ bool block_all(int id, int threads, bool value) {
  u32 all;
  asm volatile(
      "{ .reg .pred p, q; setp.ne.u32 p, %3, 0; bar.red.and.pred q, %1, %2, p;"
      " selp.u32 %0, 1, 0, q; }"
      : "=r"(all)
      : "r"(id), "r"(threads), "r"(static_cast<u32>(value))
      : "memory");
  return all != 0;
}

/* ---- copies from global to shared memory ---- */

__device__ __forceinline__ void copy16(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
/* The barrier gets this thread's arrival once its copies so far have landed. */
__device__ __forceinline__ void copy_arrive(u32 bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}

#if FF_HOPPER
__device__ __forceinline__ void barrier_expect(u32 bar, u32 bytes) {
  asm volatile(
      "{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(bar),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void copy_bulk(u32 to, const void* from, u32 bytes, u32 bar) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(bar)
      : "memory");
}
/* Moves registers between warpgroups; all warps of a warpgroup take part. */
template <int kRegisters>
__device__ __forceinline__ void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
/* Makes ordinary writes to shared memory visible to the tensor cores' own reads. */
__device__ __forceinline__ void fence_async_proxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#else
__device__ __forceinline__ void fence_async_proxy() {}
#endif

/* ---- between blocks; ordered by fences on both sides ---- */

__device__ __forceinline__ void fence_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

__device__ __forceinline__ int load_relaxed(const int* p) {
  int v;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void add_relaxed(int* p, int v) {
  asm volatile("red.relaxed.gpu.global.add.s32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
/* Brings a cache line into L2 ahead of its use. */
__device__ __forceinline__ void prefetch_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
__device__ __forceinline__ float4 load_shared(u32 address) {
  float4 v;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}
__device__ __forceinline__ void store_shared(u32 address, const float4& v) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v.x), "f"(v.y),
               "f"(v.z), "f"(v.w)
               : "memory");
}
/* Reads past L1, which is not coherent with other blocks' writes. */
__device__ __forceinline__ float4 load_l2(const float4* p) {
  float4 v;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(p));
  return v;
}
__device__ __forceinline__ float2 load_l2(const float2* p) {
  float2 v;
  asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p));
  return v;
}

/* ---- between kernels launched programmatically dependent; nothing without that attribute ---- */

/* The next kernel's blocks may come as soon as all of this one's have: they wait by themselves. */
__device__ __forceinline__ void dependents_launch() {
#if FF_HOPPER
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/* Until the kernels before this one have ended and their writes can be read. */
__device__ __forceinline__ void dependency_wait() {
#if FF_HOPPER
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- arithmetic ---- */

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Two floats as a packed pair of 16-bit values, `lo` in the lower half. */
__device__ __forceinline__ u32 pack16(float lo, float hi) {
  u32 v;
#if FF_BF16
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
#else
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
#endif
  return v;
}

/* The same in the type that the tensor cores take: 8-bit KV is widened to f16. */
__device__ __forceinline__ u32 pack_operand(float lo, float hi) {
#if FF_KV8
  u32 v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(hi), "f"(lo));
  return v;
#else
  return pack16(lo, hi);
#endif
}

__device__ __forceinline__ float unpack16(u16 v) {
  float f;
#if FF_BF16
  f = __uint_as_float(static_cast<u32>(v) << 16);
#else
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
#endif
  return f;
}

__device__ __forceinline__ u16 pack16_one(float v) {
  return static_cast<u16>(pack16(v, 0.0f) & 0xffffu);
}
