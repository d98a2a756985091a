/*
 * The online softmax of partial attention: scores of a page in base 2 become probabilities
 * relative to each query vector's running maximum.
 */
#ifndef FF_ATTENTION_SOFTMAX_H
#define FF_ATTENTION_SOFTMAX_H

#include "attention-sum.h"

enum { VECTORS = PAGE / LANES };

/* How far scores may exceed the running maximum, in base 2. */
static const float SLACK = 8.0f;

FF_INLINE int any_above(vf x, float limit) {
#if defined(FF_AVX512)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#elif defined(FF_AVX2)
  return _mm256_movemask_ps((__m256)(x > vf_splat(limit))) != 0;
#elif defined(__wasm_simd128__)
  return wasm_v128_any_true((v128_t)(x > vf_splat(limit)));
#else
  return vf_hmax(x) > limit;
#endif
}

/*
 * 2^f for |f| <= 1/2: minimax polynomials (Remez) of degree 5, relative error below 2e-7, and of
 * degree 4, below 3e-6: enough for probabilities that become integers of 15 bits.
 */
FF_INLINE vf exp2_fraction(vf f, const int degree) {
  if (degree == 4) {
    vf p = vf_splat(9.5701019849e-3f);
    p = vf_fma(p, f, vf_splat(5.5917861359e-2f));
    p = vf_fma(p, f, vf_splat(2.4024744835e-1f));
    p = vf_fma(p, f, vf_splat(6.9312181461e-1f));
    return vf_fma(p, f, vf_splat(9.9999926144e-1f));
  }
  vf p = vf_splat(1.3276471980e-3f);
  p = vf_fma(p, f, vf_splat(9.6755413342e-3f));
  p = vf_fma(p, f, vf_splat(5.5507132735e-2f));
  p = vf_fma(p, f, vf_splat(2.4022119724e-1f));
  p = vf_fma(p, f, vf_splat(6.9314696706e-1f));
  return vf_fma(p, f, vf_splat(1.0000000717f));
}

/* Nearest integer; a number too large to have a fraction stays. */
FF_INLINE vf nearest(vf x) {
#if defined(FF_AVX512)
  return (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(FF_AVX2)
  return (vf)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  return (vf)vrndnq_f32((float32x4_t)x);
#elif defined(__wasm_simd128__)
  return (vf)wasm_f32x4_nearest((v128_t)x);
#else
  return vf_select(vf_abs(x) < 4194304.0f, vf_round(x), x);
#endif
}

/*
 * 2^(x - shift) for an integer `shift` that x exceeds by SLACK + 1 at most; about 0 below 2^-126.
 * It is x that is split into integer and fraction, not x - shift: another shift gives the same
 * mantissa.
 */
FF_INLINE vf exp2_shifted(vf x, vf shift, const int degree) {
  vf n = nearest(x), exponent = n - shift;
  vf p = exp2_fraction(x - n, degree);
#if defined(FF_AVX512)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)exponent);
#else
  /* The low bits of the sum are the exponent. */
  vi bits = (vi)(exponent + 12582912.0f) << 23;
  return (vf)(((vi)p + bits) & (exponent > -126.0f));
#endif
}

/* Largest of the score vectors [first, last), lane by lane. */
FF_INLINE vf largest_scores(const float *score, isize first, isize last) {
  vf best = vf_load(score + first * LANES);
  for (isize v = first + 1; v < last; v++) best = vf_max(best, vf_load(score + v * LANES));
  return best;
}

/* Scores become probabilities relative to the maximum and are added to their sums by lanes. */
FF_INLINE void exponentiate(float *score, isize first, isize last, float maximum, float *sum) {
  vf shift = vf_splat(maximum), total = vf_load(sum);
  for (isize v = first; v < last; v++) {
    vf p = exp2_shifted(vf_load(score + v * LANES), shift, 5);
    vf_store(score + v * LANES, p);
    total += p;
  }
  vf_store(sum, total);
}

/* Rounds vectors [first, last) of a page's row to 16-bit integers, at the row's beginning. */
FF_INLINE void store_i16(float *page, isize first, isize last, const vf *x) {
  uint16_t *to = (uint16_t *)page;
#if defined(FF_AVX512)
  if (first == 0 && last == VECTORS) {
    /* The even words of both. */
    __m512i even = (__m512i)(vi_iota() * 4 | (vi_iota() * 4 + 2) << 16);
    for (isize v = 0; v < VECTORS; v += 2) {
      __m512i a = _mm512_cvtps_epi32((__m512)x[v]), b = _mm512_cvtps_epi32((__m512)x[v + 1]);
      _mm512_storeu_si512(to + v * LANES, _mm512_permutex2var_epi16(a, even, b));
    }
    return;
  }
#endif
  for (isize v = first; v < last; v++) *(vh_mem *)(to + v * LANES) = nearest_i16(x[v]);
}

/*
 * The same for pages of integers: probabilities times the scales of V become 16-bit integers that
 * add up to PROBABILITY_SUM, in place at the row's beginning. Returns their scale. The integers do
 * not depend on the maximum, a power of two.
 */
FF_INLINE float exponentiate_i16(float *score, isize first, isize last, float maximum, float *sum,
                                 const float *scale) {
  vf shift = vf_splat(maximum), total = vf_load(sum), all = vf_splat(0.0f), scaled[VECTORS];
  for (isize v = first; v < last; v++) {
    vf p = exp2_shifted(vf_load(score + v * LANES), shift, 4);
    total += p;
    scaled[v] = p * vf_load(scale + v * LANES);
    all += scaled[v];
  }
  vf_store(sum, total);
  float unit = vf_sum(all) * (1.0f / PROBABILITY_SUM);
  if (!(unit > LEAST_PEAK)) unit = 0.0f;
  vf factor = vf_splat(unit > 0.0f ? 1.0f / unit : 0.0f);
  for (isize v = first; v < last; v++) scaled[v] *= factor;
  store_i16(score, first, last, scaled);
  return unit;
}

/* Online softmax state of a block of query vectors; sums are `stride` floats apart. */
struct softmax {
  float *score;   /* (rows, PAGE) */
  float *maximum; /* (rows) what probabilities are relative to */
  float *sum;     /* (rows, LANES) of probabilities */
  isize stride;
  float *alpha; /* (rows) becomes what old outputs must be scaled by, a power of two */
  /* Pages of integers: (PAGE) scales of V, and (rows) what integers must be scaled by. */
  const float *value_scale;
  float *scale;
};

/*
 * Online softmax of a block of query vectors over score vectors [first, last). The running maximum
 * follows only when a score exceeds it by more than SLACK: p then stays below 2^(SLACK + 1), which
 * costs no precision, and nearly always no row's maximum must be reduced over its lanes and nothing
 * rescaled.
 */
FF_INLINE void update_softmax(const int rows, isize first, isize last, const struct softmax *s) {
  for (int r = 0; r < rows; r++) {
    vf best = largest_scores(s->score + r * PAGE, first, last);
    s->alpha[r] = 1.0f;
    if (any_above(best, s->maximum[r] + SLACK)) {
      float latest = nearest(vf_splat(vf_hmax(best)))[0];
      s->alpha[r] = (float)power_of_two(s->maximum[r] - latest);
      vf_store(s->sum + r * s->stride, vf_load(s->sum + r * s->stride) * vf_splat(s->alpha[r]));
      s->maximum[r] = latest;
    }
  }
  for (int r = 0; r < rows; r++) {
    float *score = s->score + r * PAGE, *sum = s->sum + r * s->stride;
    if (s->value_scale)
      s->scale[r] = exponentiate_i16(score, first, last, s->maximum[r], sum, s->value_scale);
    else
      exponentiate(score, first, last, s->maximum[r], sum);
  }
}

/* Scores of slots outside [begin, end) become so low that their probability is 0. */
FF_INLINE void mask_scores(float *score, isize first, isize last, isize begin, isize end) {
  for (isize v = first; v < last; v++) {
    vi slot = vi_iota() + (int)(v * LANES);
    vi seen = (slot >= (int)begin) & (slot < (int)end);
    vf_store(score + v * LANES,
             vf_select(seen, vf_load(score + v * LANES), vf_splat(2 * NO_SCORE)));
  }
}

#endif
