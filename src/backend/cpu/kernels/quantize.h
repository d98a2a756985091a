/*
 * Activations as int8 with one float32 scale per 32 inputs of a row, interleaved by 4 rows so
 * that a product's row tile finds its operands at fixed offsets. A row's numbers depend on that
 * row alone.
 */
#ifndef FF_QUANTIZE_H
#define FF_QUANTIZE_H

#include "dot.h"

#define BLOCK 32
#define GROUP_ROWS 4

/* 32 inputs of 4 rows. Rows of a group never written hold garbage that nobody stores. */
typedef struct {
  /* (8, row, 4): inputs 4 g to 4 g + 3 of each row lie together. */
  input_t q[BLOCK / 4][GROUP_ROWS][4];
  float scale[GROUP_ROWS];
  /* scale times the sum of q: what a weight block's minimum is multiplied by. */
  float sum[GROUP_ROWS];
  /* -128 times the sum of q over the block, and over each half of it. */
  int32_t zero[GROUP_ROWS];
  int32_t half_zero[2][GROUP_ROWS];
} input_block;

typedef int8_t vq __attribute__((vector_size(LANES)));

/* The block's q; returns the scale, 0 for a block too small to matter (below 1e-36). */
FF_INLINE float quantize_block(const float *x, int8_t *q) {
  vf most = vf_splat(0.0f);
  for (int i = 0; i < BLOCK; i += LANES) most = vf_max(most, vf_abs(vf_load(x + i)));
  float largest = vf_hmax(most);
  int empty = !(largest > 1e-36f);
  float inverse = empty ? 0.0f : 127.0f / largest;
  for (int i = 0; i < BLOCK; i += LANES) {
    vf scaled = vf_round(vf_load(x + i) * inverse);
    vq bytes = __builtin_convertvector(__builtin_convertvector(scaled, vi), vq);
    for (int j = 0; j < LANES; j++) q[i + j] = bytes[j];
  }
  return empty ? 0.0f : largest / 127.0f;
}

/* 32 inputs as row `lane` of a group's block. */
FF_INLINE void quantize_into(const float *x, input_block *out, int lane) {
  int8_t q[BLOCK];
  float scale = quantize_block(x, q);
  int32_t half[2] = {0, 0};
  for (int i = 0; i < BLOCK; i++) half[i / 16] += q[i];
  for (int g = 0; g < BLOCK / 4; g++)
    for (int j = 0; j < 4; j++) out->q[g][lane][j] = q[4 * g + j];
  out->scale[lane] = scale;
  out->sum[lane] = scale * (float)(half[0] + half[1]);
  out->zero[lane] = -128 * (half[0] + half[1]);
  out->half_zero[0][lane] = -128 * half[0];
  out->half_zero[1][lane] = -128 * half[1];
}

/* Where row `row` begins; its blocks follow one another. */
FF_INLINE input_block *quantized_row(input_block *out, int row, int columns) {
  return out + (int64_t)(row / GROUP_ROWS) * (columns / BLOCK);
}

#endif
