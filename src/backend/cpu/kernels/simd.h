/*
 * Vectors of the target's own width, for all kernels: GCC and Clang vector extensions, with
 * intrinsics only where an extension has no word for it. No libc, no threads.
 *
 * LANES floats make a `vf`, LANES ints a `vi` (arithmetic and comparisons by operators; a
 * comparison gives a `vi` of 0 or -1 a lane). Loads and stores need only their element's
 * alignment. Every function rounds the same way on each call, so results repeat bit for bit
 * within one build; the build must not contract a * b + c by itself (-ffp-contract=off).
 */
#ifndef FF_SIMD_H
#define FF_SIMD_H

#include <stdint.h>

#if defined(__x86_64__)
/* Keeps the compiler's header from asking for stdlib.h. */
#define _MM_MALLOC_H_INCLUDED 1
#define __MM_MALLOC_H 1
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__)
#define FF_AVX512 1
#define LANES 16
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define FF_AVX2 1
#define LANES 8
#else
#define LANES 4
#endif

#if defined(_WIN32)
#define FF_EXPORT __declspec(dllexport)
#else
#define FF_EXPORT __attribute__((visibility("default")))
#endif
#define FF_INLINE static inline __attribute__((always_inline, unused))

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

/* The same types where memory is only aligned to the element, and may be of another type. */
typedef float vf_mem __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi_mem __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t int32_mem __attribute__((aligned(1), may_alias));
typedef uint16_t vh_mem __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

FF_INLINE vf vf_load(const float *p) { return *(const vf_mem *)p; }
FF_INLINE void vf_store(float *p, vf x) { *(vf_mem *)p = x; }
FF_INLINE vi vi_load(const int32_t *p) { return *(const vi_mem *)p; }
FF_INLINE void vi_store(int32_t *p, vi x) { *(vi_mem *)p = x; }
/* Minus zero, since plus would turn -0 into 0. */
FF_INLINE vf vf_splat(float x) { return x - (vf){0}; }
FF_INLINE vi vi_splat(int32_t x) { return (vi){0} + x; }

/* Asks for a cache line that will be read soon; nothing on targets without a hint. */
FF_INLINE void ff_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

/* 0, 1, ... LANES - 1. */
FF_INLINE vi vi_iota(void) {
  vi r;
  for (int i = 0; i < LANES; i++) r[i] = i;
  return r;
}

/* mask ? a : b, lane by lane; mask is 0 or -1. */
FF_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
FF_INLINE vi vi_select(vi mask, vi a, vi b) { return (mask & a) | (~mask & b); }

/* a * b + c, with one rounding where the target has it. */
FF_INLINE vf vf_fma(vf a, vf b, vf c) {
#if defined(FF_AVX512)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(FF_AVX2)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__wasm_relaxed_simd__)
  return (vf)wasm_f32x4_relaxed_madd((v128_t)a, (v128_t)b, (v128_t)c);
#else
  return a * b + c;
#endif
}

/* Without NaN: where one argument is NaN the result is one of the two. */
FF_INLINE vf vf_max(vf a, vf b) {
#if defined(FF_AVX512)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(FF_AVX2)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__ARM_NEON)
  return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b);
#elif defined(__wasm_simd128__)
  return (vf)wasm_f32x4_pmax((v128_t)a, (v128_t)b);
#else
  return vf_select(a > b, a, b);
#endif
}

FF_INLINE vf vf_min(vf a, vf b) {
#if defined(FF_AVX512)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(FF_AVX2)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__ARM_NEON)
  return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b);
#elif defined(__wasm_simd128__)
  return (vf)wasm_f32x4_pmin((v128_t)a, (v128_t)b);
#else
  return vf_select(a < b, a, b);
#endif
}

FF_INLINE vf vf_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* Sum and maximum of all lanes: halves first, always in this order. */
#if defined(FF_AVX512) || defined(FF_AVX2)
#define FF_REDUCE(x, op256, op128)                                                     \
  __m256 half = FF_HALVE(x, op256);                                                    \
  __m128 a = op128(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));      \
  a = op128(a, _mm_movehl_ps(a, a));                                                   \
  return _mm_cvtss_f32(op128(a, _mm_movehdup_ps(a)))
#if defined(FF_AVX512)
#define FF_HALVE(x, op256) \
  op256(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1))
#else
#define FF_HALVE(x, op256) (__m256) x
#endif
FF_INLINE float vf_sum(vf x) { FF_REDUCE(x, _mm256_add_ps, _mm_add_ps); }
FF_INLINE float vf_hmax(vf x) { FF_REDUCE(x, _mm256_max_ps, _mm_max_ps); }
#else
FF_INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
FF_INLINE float vf_hmax(vf x) {
  float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
  return a > b ? a : b;
}
#endif

/* Nearest integer, ties to even; |x| < 2^22. */
FF_INLINE vf vf_round(vf x) { return (x + 12582912.0f) - 12582912.0f; }

/*
 * 2^x for x <= 127, relative error below 1.2e-7; 0 for x < -126 (so also for -infinity).
 * x = n + f with |f| <= 1/2; 2^f by its minimax polynomial of degree 6 (Remez).
 */
FF_INLINE vf vf_exp2(vf x) {
  vi alive = x >= -126.0f;
  vf clamped = vf_max(x, vf_splat(-126.0f));
  vf shifted = clamped + 12582912.0f;
  vf f = clamped - (shifted - 12582912.0f);
  vi n = (vi)shifted - 0x4b400000;
  vf p = vf_splat(1.559467748e-4f);
  p = vf_fma(p, f, vf_splat(1.340664390e-3f));
  p = vf_fma(p, f, vf_splat(9.617692975e-3f));
  p = vf_fma(p, f, vf_splat(5.550310551e-2f));
  p = vf_fma(p, f, vf_splat(2.402265278e-1f));
  p = vf_fma(p, f, vf_splat(6.931472150e-1f));
  p = vf_fma(p, f, vf_splat(1.0f));
  return (vf)(((vi)p + (n << 23)) & alive);
}

/* 16-bit integers to the low halves of 32-bit lanes, and back (the high halves are dropped). */
#if defined(FF_AVX512)
FF_INLINE vi vi_widen(vh h) { return (vi)_mm512_cvtepu16_epi32((__m256i)h); }
FF_INLINE vh vi_narrow(vi x) { return (vh)_mm512_cvtepi32_epi16((__m512i)x); }
#elif defined(FF_AVX2)
FF_INLINE vi vi_widen(vh h) { return (vi)_mm256_cvtepu16_epi32((__m128i)h); }
FF_INLINE vh vi_narrow(vi x) { return __builtin_convertvector(x, vh); }
#else
FF_INLINE vi vi_widen(vh h) { return __builtin_convertvector(h, vi); }
FF_INLINE vh vi_narrow(vi x) { return __builtin_convertvector(x, vh); }
#endif

/* IEEE half to float by integers alone: for targets without the instruction. Exact. */
FF_INLINE vf vf_from_f16_bits(vi h) {
  vi magnitude = (h & 0x7fff) << 13;
  vi special = (h & 0x7fff) >= 0x7c00;
  vi small = (h & 0x7fff) < 0x0400;
  vi normal = magnitude + (112 << 23) + (special & (112 << 23));
  vi subnormal = (vi)((vf)(magnitude + (113 << 23)) - 6.103515625e-5f);
  return (vf)(vi_select(small, subnormal, normal) | ((h & 0x8000) << 16));
}

/* Float to IEEE half by integers, ties to even; too large becomes infinity, NaN stays NaN. */
FF_INLINE vi vi_f16_bits(vf x) {
  vi bits = (vi)x, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  vi normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  vi subnormal = (vi)((vf)magnitude + 0.5f) - 0x3f000000;
  vi special = 0x7c00 | ((magnitude > 0x7f800000) & 0x200);
  vi r = vi_select(magnitude < (113 << 23), subnormal, normal);
  return vi_select(magnitude >= (143 << 23), special, r) | sign;
}

FF_INLINE vf vf_load_f16(const uint16_t *p) {
#if defined(FF_AVX512)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(FF_AVX2)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#elif defined(__aarch64__)
  return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#else
  return vf_from_f16_bits(vi_widen(*(const vh_mem *)p));
#endif
}

FF_INLINE void vf_store_f16(uint16_t *p, vf x) {
#if defined(FF_AVX512)
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)x, 0));
#elif defined(FF_AVX2)
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)x, 0));
#elif defined(__aarch64__)
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
#else
  *(vh_mem *)p = vi_narrow(vi_f16_bits(x));
#endif
}

FF_INLINE vf vf_load_bf16(const uint16_t *p) {
  return (vf)(vi_widen(*(const vh_mem *)p) << 16);
}

/* Ties to even; not for NaN. */
FF_INLINE void vf_store_bf16(uint16_t *p, vf x) {
  vi bits = (vi)x;
  *(vh_mem *)p = vi_narrow((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* Square root of x >= 0, without the library's error handling. */
FF_INLINE float ff_sqrt(float x) {
#if defined(__x86_64__)
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));
#elif defined(__aarch64__)
  return vgetq_lane_f32(vsqrtq_f32(vdupq_n_f32(x)), 0);
#elif defined(__wasm_simd128__)
  return wasm_f32x4_extract_lane(wasm_f32x4_sqrt(wasm_f32x4_splat(x)), 0);
#else
  return __builtin_sqrtf(x);
#endif
}

/* One half to float. */
FF_INLINE float ff_f16(uint16_t h) {
#if defined(FF_AVX512) || defined(FF_AVX2)
  return _cvtsh_ss(h);
#elif defined(__aarch64__)
  __fp16 x;
  __builtin_memcpy(&x, &h, 2);
  return (float)x;
#else
  return vf_from_f16_bits(vi_splat(h))[0];
#endif
}

FF_INLINE float ff_bf16(uint16_t h) {
  union {
    uint32_t bits;
    float value;
  } u = {(uint32_t)h << 16};
  return u.value;
}

#endif
