/*
 * KV pages of 16-bit integers. x86 multiplies pairs of them in the time of one float32 multiply-add
 * (VNNI) or little more, nothing is converted, and sums are exact.
 *
 * A page holds pairs of numbers that are summed up together: K as (headDim / 2, 64 keys, 2), V as
 * (32 pairs of keys, headDim, 2), and behind each its scales, one a key: number = integer * scale.
 *
 * Sums of products must fit 32 bits. K and queries: |q . k| <= |q| |k| (Cauchy-Schwarz), so both
 * are scaled to a length of at most NORM, or to peaks of 16 bits where that is less. The
 * probabilities of a page add up to PROBABILITY_SUM, times PEAK for V.
 */
#ifndef FF_ATTENTION_PAIRS_H
#define FF_ATTENTION_PAIRS_H

#include "simd.h"

/* NORM^2 stays below 2^31, also after rounding. */
static const float NORM = 46000.0f, PEAK = 32767.0f, PROBABILITY_SUM = 32767.0f;
/* Numbers below this are zeros: their inverse would not be finite. */
static const float LEAST_PEAK = 1e-30f;

/* Whether integers are faster than float32. In WebAssembly they are not for a single request. */
#if defined(FF_AVX512) || defined(FF_AVX2)
#define FF_FAST_PAIRS 1
#endif

/* acc + a0 * b0 + a1 * b1 in each lane of 2 x 16 bits. */
FF_INLINE vi dot_pairs(vi acc, vi a, vi b) {
#if defined(FF_AVX512) && defined(__AVX512VNNI__)
  return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(FF_AVX512)
  return acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(FF_AVX2) && defined(__AVXVNNI__)
  return (vi)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif defined(FF_AVX2)
  return acc + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
  int32x4_t low = vmull_s16(vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
  int32x4_t high = vmull_high_s16((int16x8_t)a, (int16x8_t)b);
  return acc + (vi)vpaddq_s32(low, high);
#elif defined(__wasm_simd128__)
  return acc + (vi)wasm_i32x4_dot_i16x8((v128_t)a, (v128_t)b);
#else
  return acc + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

/* The nearest 16-bit integers; |x| <= PEAK. The low bits of the sum are the integer. */
FF_INLINE vh nearest_i16(vf x) { return vi_narrow((vi)(x + 12582912.0f)); }

/* Largest magnitude of x (count). */
FF_INLINE float peak_of(const float *x, intptr_t count) {
  vf most = vf_splat(0.0f);
  for (intptr_t i = 0; i < count; i += LANES) most = vf_max(most, vf_abs(vf_load(x + i)));
  return vf_hmax(most);
}

/* Writes x / scale; returns the scale. In place is allowed. */
FF_INLINE float to_integers(const float *x, intptr_t count, float scale, uint16_t *to) {
  vf inverse = vf_splat(scale > 0 ? 1.0f / scale : 0.0f);
  for (intptr_t i = 0; i < count; i += LANES)
    *(vh_mem *)(to + i) = nearest_i16(vf_load(x + i) * inverse);
  return scale;
}

/* A query or key (count) as integers; returns their scale. */
FF_INLINE float quantize_key(const float *x, intptr_t count, uint16_t *to) {
  float peak = peak_of(x, count), scale = 0;
  if (peak > LEAST_PEAK) {
    vf squares = vf_splat(0.0f), inverse = vf_splat(1.0f / peak);
    for (intptr_t i = 0; i < count; i += LANES) {
      vf part = vf_load(x + i) * inverse;
      squares = vf_fma(part, part, squares);
    }
    float norm = ff_sqrt(vf_sum(squares)) / NORM;
    scale = peak * (norm > 1 / PEAK ? norm : 1 / PEAK);
  }
  return to_integers(x, count, scale, to);
}

/* A value (count) as integers; returns their scale. */
FF_INLINE float quantize_value(const float *x, intptr_t count, uint16_t *to) {
  float peak = peak_of(x, count);
  return to_integers(x, count, peak > LEAST_PEAK ? peak / PEAK : 0, to);
}

#endif
