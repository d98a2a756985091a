/*
 * Sums that do not show in which order they were made.
 *
 * Within a chunk (at most CHUNK_PAGES pages of one node, on the node's own grid of pages) outputs
 * and probabilities are added in float32 in the order of keys. Chunks are added in float64: its
 * sums are exact but for parts 2^29 times smaller than the sum, so after the one rounding to
 * float32 at the end it does not matter which task, worker or merge added what first.
 * The running maximum is an integer power of two, so that changing it changes exponents only.
 */
#ifndef FF_ATTENTION_SUM_H
#define FF_ATTENTION_SUM_H

#include "attention-image.h"

enum { CHUNK_PAGES = 4, DOUBLES = LANES / 2 };

typedef double vd __attribute__((vector_size(8 * DOUBLES)));
typedef double vd_mem __attribute__((vector_size(8 * DOUBLES), aligned(8), may_alias));
typedef float vf_half __attribute__((vector_size(4 * DOUBLES), aligned(4), may_alias));

FF_INLINE vd vd_load(const double *p) { return *(const vd_mem *)p; }
FF_INLINE void vd_store(double *p, vd x) { *(vd_mem *)p = x; }
FF_INLINE vd vd_splat(double x) { return x - (vd){0}; }

/* The lower and the upper half of a vector in float64. */
#if defined(FF_AVX512)
FF_INLINE vd vd_low(vf x) { return (vd)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)x)); }
FF_INLINE vd vd_high(vf x) { return (vd)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)x, 1)); }
#elif defined(FF_AVX2)
FF_INLINE vd vd_low(vf x) { return (vd)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)x)); }
FF_INLINE vd vd_high(vf x) { return (vd)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)x, 1)); }
#elif defined(__aarch64__)
FF_INLINE vd vd_low(vf x) { return (vd)vcvt_f64_f32(vget_low_f32((float32x4_t)x)); }
FF_INLINE vd vd_high(vf x) { return (vd)vcvt_high_f64_f32((float32x4_t)x); }
#else
FF_INLINE vd vd_low(vf x) { return (vd){x[0], x[1]}; }
FF_INLINE vd vd_high(vf x) { return (vd){x[2], x[3]}; }
#endif

/* Float64 to memory as floats, with one rounding. */
FF_INLINE void vd_store_floats(float *p, vd x) {
  *(vf_half *)p = __builtin_convertvector(x, vf_half);
}

/* 2^e for an integer e <= 0; 0 where float64 has no normal number. */
static double power_of_two(float e) {
  union {
    int64_t bits;
    double value;
  } u = {e < -1022.0f ? 0 : (int64_t)((int32_t)e + 1023) << 52};
  return u.value;
}

/*
 * Adds one query vector's chunk, `width` floats, to its total and starts the next chunk at zero.
 * `base` is the maximum that the total is relative to; it becomes the chunk's.
 */
FF_INLINE void add_chunk(isize width, float *chunk, float maximum, double *total, float *base) {
  vd scale = vd_splat(*base == maximum ? 1.0 : power_of_two(*base - maximum));
  *base = maximum;
  for (isize i = 0; i < width; i += LANES) {
    vf part = vf_load(chunk + i);
    vd_store(total + i, vd_load(total + i) * scale + vd_low(part));
    vd_store(total + i + DOUBLES, vd_load(total + i + DOUBLES) * scale + vd_high(part));
    vf_store(chunk + i, vf_splat(0.0f));
  }
}

/* The sum of LANES numbers, always in this order. */
FF_INLINE double sum_of_doubles(const double *lanes) {
  double sum = lanes[0];
  for (int i = 1; i < LANES; i++) sum += lanes[i];
  return sum;
}

#endif
