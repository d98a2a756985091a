/*
 * Blocks of quantised weights as GGUF files hold them (little endian), taken apart into 32 small
 * integers with scale and minimum: weight = scale * q + minimum. The formats are described in
 * ggml's own headers; codes of the types are ours (kernel-table.ts repeats them).
 */
#ifndef FF_BLOCKS_H
#define FF_BLOCKS_H

#include "simd.h"

enum {
  TYPE_F32,
  TYPE_F16,
  TYPE_BF16,
  TYPE_Q8_0,
  TYPE_Q4_0,
  TYPE_Q4_1,
  TYPE_Q5_0,
  TYPE_Q5_1,
  TYPE_Q4_K,
  TYPE_Q5_K,
  TYPE_Q6_K,
};

/* 32 weights. Types with one scale have it twice; types without a minimum have 0. */
typedef struct {
  int8_t q[32];
  float scale[2];
  float minimum;
} weight_block;

FF_INLINE float read_f16(const uint8_t *p) { return ff_f16((uint16_t)(p[0] | p[1] << 8)); }

/* Bytes of `columns` weights of a block type or of a plain type. */
FF_INLINE int64_t row_bytes(int type, int64_t columns) {
  switch (type) {
    case TYPE_F32: return columns * 4;
    case TYPE_F16: case TYPE_BF16: return columns * 2;
    case TYPE_Q8_0: return columns / 32 * 34;
    case TYPE_Q4_0: return columns / 32 * 18;
    case TYPE_Q4_1: return columns / 32 * 20;
    case TYPE_Q5_0: return columns / 32 * 22;
    case TYPE_Q5_1: return columns / 32 * 24;
    case TYPE_Q4_K: return columns / 256 * 144;
    case TYPE_Q5_K: return columns / 256 * 176;
    default: return columns / 256 * 210;
  }
}

/* Q4_0 (bias 8), Q4_1, Q5_0 (bias 16) and Q5_1: low nibbles are the first 16 weights. */
FF_INLINE void unpack_nibbles(const uint8_t *p, const uint8_t *high, int bias, int8_t *q) {
  for (int i = 0; i < 16; i++) {
    q[i] = (int8_t)((p[i] & 15) - bias);
    q[i + 16] = (int8_t)((p[i] >> 4) - bias);
  }
  if (high)
    for (int i = 0; i < 32; i++) q[i] = (int8_t)(q[i] + ((high[i / 8] >> (i % 8) & 1) << 4));
}

/* The 6-bit scale and minimum of sub-block j (of 8) in Q4_K and Q5_K. */
FF_INLINE void k_scale(const uint8_t *p, int j, int *scale, int *minimum) {
  if (j < 4) {
    *scale = p[j] & 63;
    *minimum = p[j + 4] & 63;
  } else {
    *scale = (p[j + 4] & 15) | (p[j - 4] >> 6) << 4;
    *minimum = p[j + 4] >> 4 | (p[j] >> 6) << 4;
  }
}

/* Q4_K: d, dmin, 12 bytes of scales, 128 of nibbles; Q5_K has 32 of fifth bits before those. */
FF_INLINE void unpack_k45(const uint8_t *p, int five, int j, weight_block *out) {
  int scale, minimum;
  k_scale(p + 4, j, &scale, &minimum);
  const uint8_t *low = p + 16 + (five ? 32 : 0) + j / 2 * 32;
  for (int i = 0; i < 32; i++) {
    int q = j % 2 ? low[i] >> 4 : low[i] & 15;
    if (five) q |= (p[16 + i] >> j & 1) << 4;
    out->q[i] = (int8_t)q;
  }
  out->scale[0] = out->scale[1] = read_f16(p) * (float)scale;
  out->minimum = -(read_f16(p + 2) * (float)minimum);
}

/* Q6_K: 128 bytes of low nibbles, 64 of high pairs, 16 int8 scales, d. */
FF_INLINE void unpack_k6(const uint8_t *p, int j, weight_block *out) {
  const uint8_t *low = p + j / 4 * 64 + j % 2 * 32, *high = p + 128 + j / 4 * 32;
  const int8_t *scales = (const int8_t *)p + 192;
  int quarter = j % 4;
  for (int i = 0; i < 32; i++) {
    int q = quarter < 2 ? low[i] & 15 : low[i] >> 4;
    out->q[i] = (int8_t)((q | (high[i] >> 2 * quarter & 3) << 4) - 32);
  }
  float d = read_f16(p + 208);
  out->scale[0] = d * (float)scales[2 * j];
  out->scale[1] = d * (float)scales[2 * j + 1];
  out->minimum = 0.0f;
}

/* Block `b` of 32 weights of a row. */
FF_INLINE void unpack_block(int type, const uint8_t *row, int b, weight_block *out) {
  out->minimum = 0.0f;
  switch (type) {
    case TYPE_Q8_0:
      row += (int64_t)b * 34;
      for (int i = 0; i < 32; i++) out->q[i] = (int8_t)row[2 + i];
      break;
    case TYPE_Q4_0:
      row += (int64_t)b * 18;
      unpack_nibbles(row + 2, 0, 8, out->q);
      break;
    case TYPE_Q4_1:
      row += (int64_t)b * 20;
      unpack_nibbles(row + 4, 0, 0, out->q);
      out->minimum = read_f16(row + 2);
      break;
    case TYPE_Q5_0:
      row += (int64_t)b * 22;
      unpack_nibbles(row + 6, row + 2, 16, out->q);
      break;
    case TYPE_Q5_1:
      row += (int64_t)b * 24;
      unpack_nibbles(row + 8, row + 4, 0, out->q);
      out->minimum = read_f16(row + 2);
      break;
    case TYPE_Q4_K: unpack_k45(row + (int64_t)(b / 8) * 144, 0, b % 8, out); return;
    case TYPE_Q5_K: unpack_k45(row + (int64_t)(b / 8) * 176, 1, b % 8, out); return;
    default: unpack_k6(row + (int64_t)(b / 8) * 210, b % 8, out); return;
  }
  out->scale[0] = out->scale[1] = read_f16(row);
}

#endif
