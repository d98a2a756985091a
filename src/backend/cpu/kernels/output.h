/*
 * Where a product's tiles leave their sums: y = sum + bias, or y += that.
 */
#ifndef FF_OUTPUT_H
#define FF_OUTPUT_H

#include "simd.h"

typedef struct {
  /* (rows, stride) */
  float *y;
  int64_t stride;
  /* (columns), or null. */
  const float *bias;
  /* Columns that exist; the last panel may reach beyond them. */
  int columns;
  int accumulate;
} linear_output;

/* The last panel's columns that exist, fewer than LANES. Apart, since it is rare and long. */
static __attribute__((noinline)) void store_some(const linear_output *out, int row, int column,
                                                 const float *sum) {
  float *y = out->y + row * out->stride;
  for (int i = column; i < out->columns; i++) {
    float value = out->bias ? sum[i - column] + out->bias[i] : sum[i - column];
    y[i] = out->accumulate ? y[i] + value : value;
  }
}

/* LANES columns of a row. */
FF_INLINE void store_sum(const linear_output *out, int row, int column, vf sum) {
  float *y = out->y + row * out->stride + column;
  if (column + LANES <= out->columns) {
    if (out->bias) sum += vf_load(out->bias + column);
    vf_store(y, out->accumulate ? vf_load(y) + sum : sum);
    return;
  }
  float lanes[LANES];
  vf_store(lanes, sum);
  store_some(out, row, column, lanes);
}

#endif
