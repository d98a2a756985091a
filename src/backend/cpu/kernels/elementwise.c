/*
 * What a decoder does between its products: embedding rows, RMSNorm, SwiGLU, and the summary of a
 * row of logits. Rows are independent, so workers share them by intervals; the fused variants
 * write their result quantised for ff_linear.
 */
#include "blocks.h"
#include "quantize.h"

#define LOG2_E 1.44269504f
#define LN_2 0.69314718055994531

FF_INLINE void embed_row(int type, const uint8_t *row, float *out, int columns) {
  if (type == TYPE_F32) {
    for (int i = 0; i < columns; i++) out[i] = ((const float *)row)[i];
  } else if (type == TYPE_F16) {
    for (int i = 0; i < columns; i++) out[i] = ff_f16(((const uint16_t *)row)[i]);
  } else if (type == TYPE_BF16) {
    for (int i = 0; i < columns; i++) out[i] = ff_bf16(((const uint16_t *)row)[i]);
  } else {
    for (int b = 0; b < columns / 32; b++) {
      weight_block block;
      unpack_block(type, row, b, &block);
      for (int i = 0; i < 32; i++)
        out[b * 32 + i] = block.scale[i / 16] * (float)block.q[i] + block.minimum;
    }
  }
}

/*
 * Rows [row_begin, row_end) of out (rows, columns) = the rows of `table` named by `tokens`, as
 * float32. table: rows of a weight type as in the file. tokens: (rows), each a row of the table.
 */
FF_EXPORT void ff_embed(int type, const uint8_t *table, const int32_t *tokens, float *out,
                        int row_begin, int row_end, int columns) {
  int64_t size = row_bytes(type, columns);
  for (int row = row_begin; row < row_end; row++)
    embed_row(type, table + tokens[row] * size, out + (int64_t)row * columns, columns);
}

/* 1 / sqrt(mean of squares + epsilon). */
FF_INLINE float rms_scale(const float *x, int columns, float epsilon) {
  vf squares = vf_splat(0.0f);
  int i = 0;
  for (; i + LANES <= columns; i += LANES) {
    vf value = vf_load(x + i);
    squares = vf_fma(value, value, squares);
  }
  float sum = vf_sum(squares);
  for (; i < columns; i++) sum += x[i] * x[i];
  return 1.0f / ff_sqrt(sum / (float)columns + epsilon);
}

/* Rows [row_begin, row_end): out = x / rms(x) * weight; all (rows, columns), weight (columns). */
FF_EXPORT void ff_rms_norm(const float *x, const float *weight, float *out, int row_begin,
                           int row_end, int columns, float epsilon) {
  for (int row = row_begin; row < row_end; row++) {
    const float *from = x + (int64_t)row * columns;
    float *to = out + (int64_t)row * columns;
    float scale = rms_scale(from, columns, epsilon);
    for (int i = 0; i < columns; i++) to[i] = from[i] * scale * weight[i];
  }
}

/* The same, with the result quantised. columns: a multiple of 32. */
FF_EXPORT void ff_rms_norm_quantize(const float *x, const float *weight, input_block *out,
                                    int row_begin, int row_end, int columns, float epsilon) {
  for (int row = row_begin; row < row_end; row++) {
    const float *from = x + (int64_t)row * columns;
    input_block *to = quantized_row(out, row, columns);
    float scale = rms_scale(from, columns, epsilon);
    for (int b = 0; b < columns / BLOCK; b++) {
      float normed[BLOCK];
      for (int i = 0; i < BLOCK; i++)
        normed[i] = from[b * BLOCK + i] * scale * weight[b * BLOCK + i];
      quantize_into(normed, to + b, row % GROUP_ROWS);
    }
  }
}

/* silu(gate) * up = gate * up / (1 + exp(-gate)). */
FF_INLINE vf swiglu(vf gate, vf up) {
  vf exponent = vf_min(gate * -LOG2_E, vf_splat(126.0f));
  return gate * up / (1.0f + vf_exp2(exponent));
}

FF_INLINE void swiglu_block(const float *gate, const float *up, float *out, int columns) {
  int i = 0;
  for (; i + LANES <= columns; i += LANES)
    vf_store(out + i, swiglu(vf_load(gate + i), vf_load(up + i)));
  for (; i < columns; i++) out[i] = swiglu(vf_splat(gate[i]), vf_splat(up[i]))[0];
}

/*
 * Rows [row_begin, row_end): out = silu(gate) * up, out (rows, columns). Rows of gate and up are
 * `stride` floats apart, so that both may lie in one (rows, 2 columns) result.
 */
FF_EXPORT void ff_swiglu(const float *gate, const float *up, int stride, float *out,
                         int row_begin, int row_end, int columns) {
  for (int64_t row = row_begin; row < row_end; row++)
    swiglu_block(gate + row * stride, up + row * stride, out + row * columns, columns);
}

/* The same, with the result quantised. columns: a multiple of 32. */
FF_EXPORT void ff_swiglu_quantize(const float *gate, const float *up, int stride,
                                  input_block *out, int row_begin, int row_end, int columns) {
  for (int row = row_begin; row < row_end; row++) {
    input_block *to = quantized_row(out, row, columns);
    for (int b = 0; b < columns / BLOCK; b++) {
      int64_t at = (int64_t)row * stride + b * BLOCK;
      float result[BLOCK];
      swiglu_block(gate + at, up + at, result, BLOCK);
      quantize_into(result, to + b, row % GROUP_ROWS);
    }
  }
}

/* Largest of x and the lowest index where it stands. */
FF_INLINE float max_with_index(const float *x, int columns, int32_t *index) {
  vf best = vf_splat(x[0]);
  vi where = vi_splat(0), at = vi_iota();
  int i = 0;
  for (; i + LANES <= columns; i += LANES, at += LANES) {
    vf value = vf_load(x + i);
    vi larger = value > best;
    best = vf_select(larger, value, best);
    where = vi_select(larger, at, where);
  }
  float top = best[0];
  int32_t top_index = where[0];
  for (int j = 1; j < LANES; j++)
    if (best[j] > top || (best[j] == top && where[j] < top_index)) {
      top = best[j];
      top_index = where[j];
    }
  for (; i < columns; i++)
    if (x[i] > top) {
      top = x[i];
      top_index = i;
    }
  *index = top_index;
  return top;
}

/* Natural logarithm of x >= 1: x = m 2^e with m in [0.70, 1.42), ln m = 2 atanh((m-1)/(m+1)). */
FF_INLINE double natural_log(double x) {
  int e = 0;
  while (x >= 1.4142135623730951) {
    x *= 0.5;
    e++;
  }
  double t = (x - 1.0) / (x + 1.0), t2 = t * t, series = 0.0;
  for (int n = 21; n >= 1; n -= 2) series = series * t2 + 1.0 / n;
  return 2.0 * t * series + e * LN_2;
}

/*
 * Rows [row_begin, row_end) of logits (rows, columns): argmax (rows) is the index of the largest,
 * the lowest among equals; log_sum_exp (rows) the natural log of the sum of exp(logit).
 */
FF_EXPORT void ff_logit_stats(const float *logits, int32_t *argmax, float *log_sum_exp,
                              int row_begin, int row_end, int columns) {
  for (int row = row_begin; row < row_end; row++) {
    const float *x = logits + (int64_t)row * columns;
    float top = max_with_index(x, columns, argmax + row);
    double total = 0.0;
    int i = 0;
    while (i + LANES <= columns) {
      /* Short sums in float32, their sum in float64. */
      vf sum = vf_splat(0.0f);
      for (int n = 0; n < 64 && i + LANES <= columns; n++, i += LANES)
        sum += vf_exp2((vf_load(x + i) - top) * LOG2_E);
      total += (double)vf_sum(sum);
    }
    for (; i < columns; i++) total += (double)vf_exp2(vf_splat((x[i] - top) * LOG2_E))[0];
    log_sum_exp[row] = (float)((double)top + natural_log(total));
  }
}
