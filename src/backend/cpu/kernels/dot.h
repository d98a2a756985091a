/*
 * One integer dot product per instruction set: LANES output columns x 4 inputs at a time.
 *
 * Weights are prepared once per tile (`weight8` from bytes, `weight4` from nibbles) and used for
 * every row; `dot8` and `dot4` add 4 products a lane to an accumulator. Sums of up to 32 inputs
 * start with `dot8_start`, where `zero` is -128 times the sum of the inputs, or with 0 and end
 * with `dot4_finish`. They are exact integers, so all instruction sets and tile shapes give the
 * same result.
 *
 * Bytes are stored plus 128 where the instruction wants them unsigned (FF_UNSIGNED8). Inputs are
 * int8, or int16 where there is only a 16-bit product (FF_WIDE_INPUT: WebAssembly); then weights
 * lie as two pairs of inputs per column instead of four inputs (FF_PAIRED).
 */
#ifndef FF_DOT_H
#define FF_DOT_H

#include "simd.h"

typedef int8_t vb __attribute__((vector_size(4 * LANES)));
typedef int8_t vb_mem __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

#if defined(__wasm_simd128__)
#define FF_WIDE_INPUT 1
typedef int16_t input_t;
#else
typedef int8_t input_t;
#endif

/* The 4 inputs of one row in all lanes. */
FF_INLINE vi inputs_splat(const input_t *x) { return vi_splat(*(const int32_mem *)x); }

#if (defined(FF_AVX512) && defined(__AVX512VNNI__)) || (defined(FF_AVX2) && defined(__AVXVNNI__))
/* u8 x s8, 4 products added to 32 bits in one instruction. */
#define FF_UNSIGNED8 1
typedef vi weight_t;
FF_INLINE weight_t weight8(const uint8_t *p) { return (vi) * (const vb_mem *)p; }
FF_INLINE weight_t weight4(vi nibbles) { return nibbles; }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *x) {
#if defined(FF_AVX512)
  return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)inputs_splat(x));
#else
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, (__m256i)inputs_splat(x));
#endif
}
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) { return dot8(acc, w, x); }

#elif defined(FF_AVX512)
/* 16-bit pair sums saturate for u8 x s8: multiply |w| by x with w's sign instead. */
typedef struct {
  vi magnitude;
  __mmask64 negative;
} weight_t;
FF_INLINE weight_t weight8(const uint8_t *p) {
  vi w = (vi) * (const vb_mem *)p;
  return (weight_t){(vi)_mm512_abs_epi8((__m512i)w), _mm512_movepi8_mask((__m512i)w)};
}
FF_INLINE weight_t weight4(vi nibbles) { return (weight_t){nibbles, 0}; }
/* Sums of pairs of 16-bit numbers. */
FF_INLINE vi add_pairs(__m512i x) { return (vi)_mm512_madd_epi16(x, _mm512_set1_epi16(1)); }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *p) {
  __m512i x = (__m512i)inputs_splat(p);
  __m512i s = _mm512_mask_sub_epi8(x, w.negative, _mm512_setzero_si512(), x);
  return acc + add_pairs(_mm512_maddubs_epi16((__m512i)w.magnitude, s));
}
/* Nibbles are so small that 16-bit sums hold a whole block: 8 x 2 x 15 x 127 < 2^15. */
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) {
  __m512i pairs = _mm512_maddubs_epi16((__m512i)w.magnitude, (__m512i)inputs_splat(x));
  return (vi)_mm512_add_epi16((__m512i)acc, pairs);
}
#define FF_FINISH4(acc) add_pairs((__m512i)(acc))

#elif defined(FF_AVX2)
/* As above. */
typedef struct {
  vi magnitude, value;
} weight_t;
FF_INLINE weight_t weight8(const uint8_t *p) {
  vi w = (vi) * (const vb_mem *)p;
  return (weight_t){(vi)_mm256_abs_epi8((__m256i)w), w};
}
FF_INLINE weight_t weight4(vi nibbles) { return (weight_t){nibbles, nibbles}; }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *x) {
  __m256i s = _mm256_sign_epi8((__m256i)inputs_splat(x), (__m256i)w.value);
  __m256i pairs = _mm256_maddubs_epi16((__m256i)w.magnitude, s);
  return acc + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) {
  __m256i pairs = _mm256_maddubs_epi16((__m256i)w.magnitude, (__m256i)inputs_splat(x));
  return (vi)_mm256_add_epi16((__m256i)acc, pairs);
}
#define FF_FINISH4(acc) ((vi)_mm256_madd_epi16((__m256i)(acc), _mm256_set1_epi16(1)))

#elif defined(__ARM_NEON)
typedef int8x16_t weight_t;
FF_INLINE weight_t weight8(const uint8_t *p) { return vld1q_s8((const int8_t *)p); }
FF_INLINE weight_t weight4(vi nibbles) { return (int8x16_t)nibbles; }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *p) {
  int8x16_t x = (int8x16_t)inputs_splat(p);
#if defined(__ARM_FEATURE_DOTPROD)
  return (vi)vdotq_s32((int32x4_t)acc, w, x);
#else
  int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x));
  int16x8_t high = vmull_s8(vget_high_s8(w), vget_high_s8(x));
  return (vi)vpadalq_s16((int32x4_t)acc, vpaddq_s16(low, high));
#endif
}
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) { return dot8(acc, w, x); }

#elif defined(__wasm_simd128__)
#define FF_PAIRED 1
typedef struct {
  v128_t first, second;
} weight_t;
FF_INLINE weight_t weight_pairs(v128_t w) {
  return (weight_t){wasm_i16x8_extend_low_i8x16(w), wasm_i16x8_extend_high_i8x16(w)};
}
FF_INLINE weight_t weight8(const uint8_t *p) { return weight_pairs(wasm_v128_load(p)); }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *x) {
  vi a = (vi)wasm_i32x4_dot_i16x8(w.first, wasm_v128_load32_splat(x));
  vi b = (vi)wasm_i32x4_dot_i16x8(w.second, wasm_v128_load32_splat(x + 2));
  return acc + a + b;
}
#if defined(__wasm_relaxed_simd__)
/* Nibbles are 7-bit numbers, so that the relaxed product is the same on every engine; 16-bit sums
   hold a whole block as on AVX2. They lie four inputs a column and take int8 inputs. */
#define FF_NARROW_NIBBLES 1
typedef v128_t nibble_t;
FF_INLINE nibble_t weight4(vi nibbles) { return (v128_t)nibbles; }
FF_INLINE vi dot4(vi acc, nibble_t w, const int8_t *x) {
  v128_t pairs = wasm_i16x8_relaxed_dot_i8x16_i7x16(wasm_v128_load32_splat(x), w);
  return (vi)wasm_i16x8_add((v128_t)acc, pairs);
}
#define FF_FINISH4(acc) ((vi)wasm_i32x4_dot_i16x8((v128_t)(acc), wasm_i16x8_splat(1)))
#else
FF_INLINE weight_t weight4(vi nibbles) { return weight_pairs((v128_t)nibbles); }
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) { return dot8(acc, w, x); }
#endif

#else
/* Any other machine: bytes taken out of 32-bit lanes by shifts. */
typedef vi weight_t;
FF_INLINE weight_t weight8(const uint8_t *p) { return (vi) * (const vb_mem *)p; }
FF_INLINE weight_t weight4(vi nibbles) { return nibbles; }
FF_INLINE vi dot8(vi acc, weight_t w, const input_t *x) {
  acc += (w << 24 >> 24) * vi_splat(x[0]) + (w << 16 >> 24) * vi_splat(x[1]);
  return acc + (w << 8 >> 24) * vi_splat(x[2]) + (w >> 24) * vi_splat(x[3]);
}
FF_INLINE vi dot4(vi acc, weight_t w, const input_t *x) { return dot8(acc, w, x); }
#endif

/* What nibbles become, and the inputs they are multiplied with. */
#if defined(FF_NARROW_NIBBLES)
typedef int8_t nibble_input_t;
#else
typedef weight_t nibble_t;
typedef input_t nibble_input_t;
#endif

#if defined(FF_UNSIGNED8)
FF_INLINE vi dot8_start(int32_t zero) { return vi_splat(zero); }
#else
FF_INLINE vi dot8_start(int32_t zero) { return (void)zero, vi_splat(0); }
#endif

#if !defined(FF_FINISH4)
#define FF_FINISH4(acc) (acc)
#endif
FF_INLINE vi dot4_finish(vi acc) { return FF_FINISH4(acc); }

#endif
