/*
 * Activations as int8 with one float32 scale per 16 inputs of a row, interleaved by 4 rows so
 * that a product's row tile finds its operands at fixed offsets. A row's numbers depend on that
 * row alone. One scale per 32 would save a twelfth of a product's arithmetic, but a few inputs of
 * a model are far larger than the others and round all that share their scale: log-probabilities
 * of SmolLM2-135M would be 1.4 times as far from float32's.
 */
#ifndef FF_QUANTIZE_H
#define FF_QUANTIZE_H

#include "dot.h"

#define BLOCK 32
#define HALF 16
#define GROUP_ROWS 4

/* 32 inputs of 4 rows. Rows of a group never written hold garbage that nobody stores. */
typedef struct {
  /* (8, row, 4): inputs 4 g to 4 g + 3 of each row lie together. */
  input_t q[BLOCK / 4][GROUP_ROWS][4];
  /* Of each half of the block. */
  float scale[2][GROUP_ROWS];
  /* The sum of scale times q: what a weight block's minimum is multiplied by. */
  float sum[GROUP_ROWS];
  /* -128 times the sum of q over each half. */
  int32_t zero[2][GROUP_ROWS];
#if defined(FF_NARROW_NIBBLES)
  /* q as int8. */
  int8_t narrow[BLOCK / 4][GROUP_ROWS][4];
#endif
} input_block;

/* Input group g of a row for weights of nibbles. */
FF_INLINE const nibble_input_t *nibble_inputs(const input_block *x, int g, int lane) {
#if defined(FF_NARROW_NIBBLES)
  return x->narrow[g][lane];
#else
  return x->q[g][lane];
#endif
}

/* LANES inputs. */
typedef input_t vq __attribute__((vector_size(sizeof(input_t) * LANES)));
typedef input_t vq_mem __attribute__((vector_size(sizeof(input_t) * LANES), aligned(1), may_alias));

FF_INLINE vq vq_from_ints(vi x) {
#if defined(FF_AVX512)
  return (vq)_mm512_cvtepi32_epi8((__m512i)x);
#else
  return __builtin_convertvector(x, vq);
#endif
}

/* The sum of 16 small integers, exact in float32. */
FF_INLINE int32_t sum16(const vi *x) {
  vi sum = x[0];
  for (int i = 1; i < 16 / LANES; i++) sum += x[i];
  return (int32_t)vf_sum(__builtin_convertvector(sum, vf));
}

/*
 * Inputs of half a block: q = x * 127 / largest |x|, to the nearest, ties to even. Halves too
 * small to matter (below 1e-36) become zeros. Returns the scale; `total` becomes the sum of q.
 */
FF_INLINE float quantize_half(const float *x, input_t *q, int32_t *total) {
  vf most = vf_splat(0.0f);
  for (int i = 0; i < HALF; i += LANES) most = vf_max(most, vf_abs(vf_load(x + i)));
  float largest = vf_hmax(most);
  int empty = !(largest > 1e-36f);
  float inverse = empty ? 0.0f : 127.0f / largest;

  vi ints[HALF / LANES];
  for (int i = 0; i < HALF / LANES; i++) {
    /* Adding 1.5 * 2^23 leaves the nearest integer in the low bits. */
    ints[i] = (vi)(vf_load(x + i * LANES) * inverse + 12582912.0f) - 0x4b400000;
    *(vq_mem *)(q + i * LANES) = vq_from_ints(ints[i]);
  }
  *total = sum16(ints);
  return empty ? 0.0f : largest / 127.0f;
}

/* 32 inputs as row `lane` of a group's block. */
FF_INLINE void quantize_into(const float *x, input_block *out, int lane) {
  input_t q[BLOCK];
  float sum = 0.0f;
  for (int half = 0; half < 2; half++) {
    int32_t total;
    float scale = quantize_half(x + half * HALF, q + half * HALF, &total);
    out->scale[half][lane] = scale;
    out->zero[half][lane] = -128 * total;
    sum += scale * (float)total;
  }
  out->sum[lane] = sum;
  for (int g = 0; g < BLOCK / 4; g++)
    __builtin_memcpy(out->q[g][lane], q + 4 * g, 4 * sizeof(input_t));
#if defined(FF_NARROW_NIBBLES)
  for (int i = 0; i < BLOCK; i++) out->narrow[i / 4][lane][i % 4] = (int8_t)q[i];
#endif
}

/* Where row `row` begins; its blocks follow one another. */
FF_INLINE input_block *quantized_row(input_block *out, int row, int columns) {
  return out + (int64_t)(row / GROUP_ROWS) * (columns / BLOCK);
}

#endif
