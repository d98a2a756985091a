/*
 * The online softmax of partial attention: scores of a page in base 2 become probabilities
 * relative to each query vector's running maximum.
 */
#ifndef FF_ATTENTION_SOFTMAX_H
#define FF_ATTENTION_SOFTMAX_H

#include "attention-image.h"

enum { VECTORS = PAGE / LANES };

/* Binary logarithm of a positive normal number, absolute error below 1e-6. */
static float log2_of(float x) {
  union {
    float value;
    int32_t bits;
  } u = {x};
  int32_t exponent = (u.bits - 0x3f3504f3) >> 23;
  u.bits -= exponent << 23;
  /* log2(m) = 2 / ln 2 * atanh((m - 1) / (m + 1)) for m in [sqrt(1/2), sqrt(2)). */
  float z = (u.value - 1.0f) / (u.value + 1.0f), z2 = z * z;
  float series = 1.0f + z2 * (1 / 3.0f + z2 * (1 / 5.0f + z2 * (1 / 7.0f + z2 / 9.0f)));
  return (float)exponent + 2.8853900818f * z * series;
}

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
  return max_of_lanes(x) > limit;
#endif
}

/* 2^f for |f| <= 1/2: minimax polynomial of degree 5 (Remez), relative error below 2e-7. */
FF_INLINE vf exp2_fraction(vf f) {
  vf p = vf_splat(1.3276471980e-3f);
  p = vf_fma(p, f, vf_splat(9.6755413342e-3f));
  p = vf_fma(p, f, vf_splat(5.5507132735e-2f));
  p = vf_fma(p, f, vf_splat(2.4022119724e-1f));
  p = vf_fma(p, f, vf_splat(6.9314696706e-1f));
  return vf_fma(p, f, vf_splat(1.0000000717f));
}

/* 2^x for x up to SLACK; 0 for x < -126. */
FF_INLINE vf exp2_below(vf x) {
#if defined(FF_AVX512)
  vf f = (vf)_mm512_reduce_ps((__m512)x, _MM_FROUND_NO_EXC);
  vf p = exp2_fraction(f);
  __mmask16 alive = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.0f), _CMP_GE_OQ);
  return (vf)_mm512_maskz_scalef_ps(alive, (__m512)p, (__m512)(x - f));
#else
  vf shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
  vf p = exp2_fraction(f);
  /* The low bits of the shifted x are its nearest integer. */
  return (vf)(((vi)p + ((vi)shifted << 23)) & (x >= -126.0f));
#endif
}

/* Largest of the score vectors [first, last), lane by lane. */
FF_INLINE vf largest_scores(const float *score, isize first, isize last) {
  vf best = vf_load(score + first * LANES);
  for (isize v = first + 1; v < last; v++) best = vf_max(best, vf_load(score + v * LANES));
  return best;
}

/* Scores become probabilities relative to the maximum; returns their sums in each lane. */
FF_INLINE vf exponentiate(float *score, isize first, isize last, float maximum) {
  vf total = vf_splat(0.0f), shift = vf_splat(maximum);
  for (isize v = first; v < last; v++) {
    vf p = exp2_below(vf_load(score + v * LANES) - shift);
    vf_store(score + v * LANES, p);
    total += p;
  }
  return total;
}

/*
 * Online softmax of a block of query vectors over score vectors [first, last). The running maximum
 * follows only when a score exceeds it by more than SLACK: p then stays below 2^SLACK, which costs
 * no precision, and nearly always no row's maximum must be reduced over its lanes and nothing
 * rescaled. alpha becomes what the old outputs must be scaled by.
 */
FF_INLINE void update_softmax(const int rows, float *score, isize first, isize last,
                              float *maximum, float *sum, float *alpha) {
  for (int r = 0; r < rows; r++) {
    vf best = largest_scores(score + r * PAGE, first, last);
    alpha[r] = 1.0f;
    if (any_above(best, maximum[r] + SLACK)) {
      float latest = max_of_lanes(best);
      vf change = vf_exp2(vf_splat(maximum[r] - latest));
      alpha[r] = change[0];
      vf_store(sum + r * LANES, vf_load(sum + r * LANES) * change);
      maximum[r] = latest;
    }
  }
  for (int r = 0; r < rows; r++) {
    vf total = exponentiate(score + r * PAGE, first, last, maximum[r]);
    vf_store(sum + r * LANES, vf_load(sum + r * LANES) + total);
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
