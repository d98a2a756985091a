/*
 * Products of batched rows with quantised weights: y = x W^T + bias, or y += the same.
 *
 * x comes quantised (quantize.h), W repacked (panels.h). A tile is up to 16 rows x 1 panel of 16
 * output columns with its sums in registers; panels are the outer loop, row tiles the inner one,
 * so that a panel read from memory is used for all rows while it lies in the cache, and the next
 * one is asked for meanwhile. An output's terms are added in the order of the inputs whatever the
 * tile, so results do not depend on the batch or on how workers share the work.
 */
#include "output.h"
#include "panels.h"
#include "quantize.h"
#include "unroll.h"

#define TILE_ROWS 16

/* Vectors of a panel that one tile holds; with short vectors a panel takes several passes. */
#if LANES == 16
#define TILE_VECTORS 1
#else
#define TILE_VECTORS 2
#endif

/* Activations that stay in the level 2 cache while panels stream by; but at least so many rows,
   since each chunk of rows reads all weights again. */
#define CHUNK_BYTES (384 * 1024)
#define CHUNK_ROWS_LEAST 128
/* How far ahead of its use a panel is asked for when it is read only once. */
#define AHEAD_BYTES 16384

typedef struct {
  const input_block *x;
  const uint8_t *weights;
  int blocks;
  linear_output out;
} linear_task;

/* The operands of one tile: groups of 4 rows and, where the tile is one row, its place in one. */
typedef struct {
  const input_block *x[TILE_ROWS / GROUP_ROWS];
  int lane;
} tile_rows;

FF_INLINE vf load_scale(int form, const uint8_t *scales, int index) {
  if (form_has_f16_scale(form)) return vf_load_f16((const uint16_t *)scales + index);
  return vf_load((const float *)scales + index);
}

/* Integer sums of input groups [begin, end) of a block of bytes. */
FF_INLINE void dot_bytes(int rows, const tile_rows *t, int b, const uint8_t *w, int begin,
                         int end, vi dot[TILE_ROWS][TILE_VECTORS]) {
  UNROLL_GROUPS
  for (int g = begin; g < end; g++) {
    weight_t weight[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < TILE_VECTORS; v++) weight[v] = weight8(w + g * 64 + v * 4 * LANES);
    UNROLL
    for (int r = 0; r < rows; r++) {
      const input_t *x = t->x[r / 4][b].q[g][rows == 1 ? t->lane : r % 4];
      UNROLL
      for (int v = 0; v < TILE_VECTORS; v++) dot[r][v] = dot8(dot[r][v], weight[v], x);
    }
  }
}

/* The same for a block of nibbles, all 8 groups. */
FF_INLINE void dot_nibbles(int rows, const tile_rows *t, int b, const uint8_t *w,
                           vi dot[TILE_ROWS][TILE_VECTORS]) {
  UNROLL_GROUPS
  for (int g = 0; g < 4; g++) {
    nibble_t low[TILE_VECTORS], high[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < TILE_VECTORS; v++) {
      vi raw = (vi) * (const vb_mem *)(w + g * 64 + v * 4 * LANES);
      low[v] = weight4(raw & 0x0f0f0f0f);
      high[v] = weight4(raw >> 4 & 0x0f0f0f0f);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
      int lane = rows == 1 ? t->lane : r % 4;
      const nibble_input_t *x = nibble_inputs(&t->x[r / 4][b], g, lane);
      const nibble_input_t *x2 = nibble_inputs(&t->x[r / 4][b], g + 4, lane);
      UNROLL
      for (int v = 0; v < TILE_VECTORS; v++)
        dot[r][v] = dot4(dot4(dot[r][v], low[v], x), high[v], x2);
    }
  }
}

/* Adds scale * input scale * dot, and minimum * input sum, to a tile's outputs. */
FF_INLINE void add_block(int form, int rows, const tile_rows *t, int b, const uint8_t *scales,
                         int half, vi dot[TILE_ROWS][TILE_VECTORS],
                         vf sum[TILE_ROWS][TILE_VECTORS]) {
  UNROLL
  for (int v = 0; v < TILE_VECTORS; v++) {
    vf scale = load_scale(form, scales, half * PANEL + v * LANES);
    vf minimum = vf_splat(0.0f);
    if (form_has_minimum(form)) minimum = load_scale(form, scales, PANEL + v * LANES);
    UNROLL
    for (int r = 0; r < rows; r++) {
      const input_block *x = &t->x[r / 4][b];
      int lane = rows == 1 ? t->lane : r % 4;
      vf product = __builtin_convertvector(dot[r][v], vf);
      sum[r][v] = vf_fma(product, scale * x->scale[lane], sum[r][v]);
      if (form_has_minimum(form))
        sum[r][v] = vf_fma(minimum, vf_splat(x->sum[lane]), sum[r][v]);
    }
  }
}

/* What the weights' zero point makes of a block's inputs. */
FF_INLINE int32_t zero_of(int form, const input_block *x, int half, int lane) {
  if (form == FORM_N4) return x->zero[lane] >> 4;
  if (form_is_nibbles(form)) return 0;
  return form == FORM_B8_HALVES ? x->half_zero[half][lane] : x->zero[lane];
}

/* One tile over all blocks; `column` is where in the panel its vectors begin. */
FF_INLINE void tile(int form, int rows, const tile_rows *t, int blocks, const uint8_t *panel,
                    int column, int64_t ahead, vf sum[TILE_ROWS][TILE_VECTORS]) {
  int quants = form_is_nibbles(form) ? 16 * PANEL : 32 * PANEL;
  int halves = form == FORM_B8_HALVES ? 2 : 1;
  int number = form_has_f16_scale(form) ? 2 : 4;
  const uint8_t *w = panel + column * 4;
  const uint8_t *scales = panel + (int64_t)blocks * quants + column * number;
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < TILE_VECTORS; v++) sum[r][v] = vf_splat(0.0f);

  for (int b = 0; b < blocks; b++) {
    for (int i = 0; i < quants; i += 64) ff_prefetch(w + ahead + i);
    ff_prefetch(scales + ahead);
    UNROLL
    for (int h = 0; h < halves; h++) {
      vi dot[TILE_ROWS][TILE_VECTORS];
      UNROLL
      for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++)
          dot[r][v] = dot_start(zero_of(form, &t->x[r / 4][b], h, rows == 1 ? t->lane : r % 4));
      if (form_is_nibbles(form)) dot_nibbles(rows, t, b, w, dot);
      else dot_bytes(rows, t, b, w, 8 / halves * h, 8 / halves * (h + 1), dot);
      UNROLL
      for (int r = 0; r < rows; r++)
        for (int v = 0; v < TILE_VECTORS; v++) {
          int32_t zero = zero_of(form, &t->x[r / 4][b], h, rows == 1 ? t->lane : r % 4);
          dot[r][v] = form_is_nibbles(form) ? dot4_finish(dot[r][v], zero)
                                            : dot8_finish(dot[r][v], zero);
        }
      add_block(form, rows, t, b, scales, h, dot, sum);
    }
    w += quants;
    scales += form_scale_bytes(form);
  }
}

/* A tile of `rows` rows (a multiple of 4, or 1), of which the first `valid` exist. */
FF_INLINE void run_tile(int form, int rows, const linear_task *task, int row, int valid, int p,
                        int64_t ahead) {
  tile_rows t = {.lane = row % GROUP_ROWS};
  for (int i = 0; i < (rows + 3) / 4; i++)
    t.x[i] = task->x + (int64_t)(row / GROUP_ROWS + i) * task->blocks;
  int64_t bytes = form_panel_bytes(form, task->blocks * BLOCK);
  const uint8_t *panel = task->weights + p * bytes;
  for (int column = 0; column < PANEL; column += TILE_VECTORS * LANES) {
    vf sum[TILE_ROWS][TILE_VECTORS];
    tile(form, rows, &t, task->blocks, panel, column, ahead, sum);
    UNROLL
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < TILE_VECTORS; v++)
        if (r < valid) store_sum(&task->out, row + r, p * PANEL + column + v * LANES, sum[r][v]);
  }
}

#if LANES == 16
#if defined(FF_ZERO_AT_START)
#define LARGE_TILE 16
#else
#define LARGE_TILE 8
#endif
#define MEDIUM_TILE 8
#define SINGLE_ROWS 1
#else
#define LARGE_TILE 4
#define MEDIUM_TILE 4
/* Here arithmetic is the bottleneck, and half a tile of garbage costs more than a second pass. */
#define SINGLE_ROWS 2
#endif

/* Two scales a block need registers that the largest tile does not leave. */
FF_INLINE int largest_tile(int form) { return form == FORM_B8_HALVES ? MEDIUM_TILE : LARGE_TILE; }

/* Rows [begin, end) of one panel, in tiles as large as fit. Small rests are padded: the rows
   beyond `end` are computed from what lies there and not stored. */
FF_INLINE void run_panel(int form, const linear_task *task, int begin, int end, int p) {
  int64_t next = form_panel_bytes(form, task->blocks * BLOCK);
  int large = largest_tile(form);
  int64_t ahead = end - begin <= large ? AHEAD_BYTES : next;
  for (int row = begin; row < end; ahead = 0) {
    int left = end - row;
    if (row % GROUP_ROWS != 0 || left <= SINGLE_ROWS) {
      run_tile(form, 1, task, row, 1, p, ahead);
      row += 1;
    } else if (large > MEDIUM_TILE && left > large - GROUP_ROWS) {
      run_tile(form, large, task, row, left, p, ahead);
      row += large;
    } else if (MEDIUM_TILE > GROUP_ROWS && left > GROUP_ROWS) {
      run_tile(form, MEDIUM_TILE, task, row, left, p, ahead);
      row += MEDIUM_TILE;
    } else {
      run_tile(form, GROUP_ROWS, task, row, left, p, ahead);
      row += GROUP_ROWS;
    }
  }
}

#define DEFINE_RUN(name, form)                                                          \
  static __attribute__((noinline)) void name(const linear_task *task, int row_begin,    \
                                             int row_end, int p_begin, int p_end) {     \
    for (int p = p_begin; p < p_end; p++) run_panel(form, task, row_begin, row_end, p); \
  }
DEFINE_RUN(run_b8, FORM_B8)
DEFINE_RUN(run_n4, FORM_N4)
DEFINE_RUN(run_n4_min, FORM_N4_MIN)
DEFINE_RUN(run_n4_min32, FORM_N4_MIN32)
DEFINE_RUN(run_b8_min32, FORM_B8_MIN32)
DEFINE_RUN(run_b8_halves, FORM_B8_HALVES)

/*
 * Rows [row_begin, row_end) of y (rows, y_stride) for panels [panel_begin, panel_end) of W.
 * x: rows quantised by ff_quantize_rows or a fused kernel, `columns` inputs each, a multiple of
 * 32. bias: `outputs` floats or null. accumulate: 1 adds to y, 0 overwrites. Only the first
 * `outputs` columns exist in y and bias.
 */
FF_EXPORT void ff_linear(int form, const input_block *x, const uint8_t *weights,
                         const float *bias, float *y, int y_stride, int row_begin, int row_end,
                         int panel_begin, int panel_end, int columns, int outputs,
                         int accumulate) {
  int blocks = columns / BLOCK;
  linear_task task = {x, weights, blocks, {y, y_stride, bias, outputs, accumulate}};
  int64_t group_bytes = (int64_t)sizeof(input_block) * (blocks > 0 ? blocks : 1);
  int chunk = (int)(CHUNK_BYTES / group_bytes) * GROUP_ROWS / TILE_ROWS * TILE_ROWS;
  if (chunk < CHUNK_ROWS_LEAST) chunk = CHUNK_ROWS_LEAST;
  for (int row = row_begin; row < row_end; row += chunk) {
    int end = row + chunk < row_end ? row + chunk : row_end;
    switch (form) {
      case FORM_B8: run_b8(&task, row, end, panel_begin, panel_end); break;
      case FORM_N4: run_n4(&task, row, end, panel_begin, panel_end); break;
      case FORM_N4_MIN: run_n4_min(&task, row, end, panel_begin, panel_end); break;
      case FORM_N4_MIN32: run_n4_min32(&task, row, end, panel_begin, panel_end); break;
      case FORM_B8_MIN32: run_b8_min32(&task, row, end, panel_begin, panel_end); break;
      case FORM_B8_HALVES: run_b8_halves(&task, row, end, panel_begin, panel_end); break;
    }
  }
}

/* Quantises rows [row_begin, row_end) of x (rows, columns) for ff_linear. */
FF_EXPORT void ff_quantize_rows(const float *x, input_block *out, int row_begin, int row_end,
                                int columns) {
  for (int row = row_begin; row < row_end; row++) {
    const float *from = x + (int64_t)row * columns;
    input_block *to = quantized_row(out, row, columns);
    for (int b = 0; b < columns / BLOCK; b++)
      quantize_into(from + b * BLOCK, to + b, row % GROUP_ROWS);
  }
}
