/*
 * Products of batched rows with quantised weights: y = x W^T + bias, or y += the same.
 *
 * x comes quantised (quantize.h), W repacked (panels.h). A tile is 4 rows (or 1) x 2 vectors of
 * output columns with all its sums in registers; panels are the outer loop, row tiles the inner
 * one, so that a panel read from memory is used for all rows while it lies in the cache, and the
 * next one is asked for meanwhile. An output's terms are added in the order of the inputs
 * whatever the tile, so results do not depend on the batch or on how workers share the work.
 */
#include "output.h"
#include "panels.h"
#include "quantize.h"
#include "unroll.h"

/* One of each of two panels, or where a vector is shorter than a panel two of the same. Reading
   inputs once for both leaves arithmetic, not loads, as the limit. */
#define TILE_VECTORS 2

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

/* The operands of one tile. */
typedef struct {
  /* A group of 4 rows and, where the tile is one row, its place in it. */
  const input_block *x;
  int lane;
  int vectors;
  /* From one vector's weights and scales to the next one's, in bytes. */
  int64_t weight_step, scale_step;
  /* How far from the first vector's the weights are that the tile asks for meanwhile, as many as
     a panel has; 0: none. */
  int64_t ahead;
} tile_operands;

FF_INLINE int lane_of(int rows, const tile_operands *t, int r) { return rows == 1 ? t->lane : r; }

/* Bytes of a block's weights for 16 columns. */
FF_INLINE int quant_bytes(int form) { return form_is_nibbles(form) ? 16 * PANEL : 32 * PANEL; }

FF_INLINE vf load_scale(int form, const uint8_t *scales, int index) {
  if (form_has_f16_scale(form)) return vf_load_f16((const uint16_t *)scales + index);
  return vf_load((const float *)scales + index);
}

/* Integer sums of the 4 input groups of a block's half, of bytes. */
FF_INLINE void dot_bytes(int rows, const tile_operands *t, int b, int half, const uint8_t *w,
                         vi dot[GROUP_ROWS][TILE_VECTORS]) {
  UNROLL_GROUPS
  for (int g = 4 * half; g < 4 * half + 4; g++) {
    weight_t weight[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < t->vectors; v++) weight[v] = weight8(w + g * 64 + v * t->weight_step);
    UNROLL
    for (int r = 0; r < rows; r++) {
      const input_t *x = t->x[b].q[g][lane_of(rows, t, r)];
      UNROLL
      for (int v = 0; v < t->vectors; v++) dot[r][v] = dot8(dot[r][v], weight[v], x);
    }
  }
}

/* The same of nibbles: the first half of the inputs lies in the low ones. */
FF_INLINE void dot_nibbles(int rows, const tile_operands *t, int b, int half, const uint8_t *w,
                           vi dot[GROUP_ROWS][TILE_VECTORS]) {
  UNROLL_GROUPS
  for (int g = 0; g < 4; g++) {
    nibble_t weight[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < t->vectors; v++) {
      vi raw = (vi) * (const vb_mem *)(w + g * 64 + v * t->weight_step);
      weight[v] = weight4(raw >> 4 * half & 0x0f0f0f0f);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
      const nibble_input_t *x = nibble_inputs(t->x + b, g + 4 * half, lane_of(rows, t, r));
      UNROLL
      for (int v = 0; v < t->vectors; v++) dot[r][v] = dot4(dot[r][v], weight[v], x);
    }
  }
}

/* Products of half a block in units of the inputs' scale. */
FF_INLINE void dot_half(int form, int rows, const tile_operands *t, int b, int half,
                        const uint8_t *w, vi dot[GROUP_ROWS][TILE_VECTORS]) {
  int nibbles = form_is_nibbles(form);
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < t->vectors; v++)
      dot[r][v] = nibbles ? vi_splat(0) : dot8_start(t->x[b].zero[half][lane_of(rows, t, r)]);
  if (nibbles) dot_nibbles(rows, t, b, half, w, dot);
  else dot_bytes(rows, t, b, half, w, dot);
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < t->vectors; v++)
      if (nibbles) dot[r][v] = dot4_finish(dot[r][v]);
}

/* The two halves of a block, each times its inputs' scale. Weights with a scale for each half
   take that here, and their products are added to what is there. */
FF_INLINE void dot_block(int form, int rows, const tile_operands *t, int b, const uint8_t *w,
                         const uint8_t *scales, vf product[GROUP_ROWS][TILE_VECTORS]) {
  UNROLL
  for (int half = 0; half < 2; half++) {
    vi dot[GROUP_ROWS][TILE_VECTORS];
    dot_half(form, rows, t, b, half, w, dot);
    UNROLL
    for (int v = 0; v < t->vectors; v++) {
      UNROLL
      for (int r = 0; r < rows; r++) {
        vf scale = vf_splat(t->x[b].scale[half][lane_of(rows, t, r)]);
        if (form == FORM_B8_HALVES)
          scale *= load_scale(form, scales + v * t->scale_step, half * PANEL);
        vf value = __builtin_convertvector(dot[r][v], vf);
        /* Nibbles are the weights plus 8, inputs times 8 are taken away again. */
        if (half == 0 && form == FORM_N4)
          product[r][v] = vf_splat(t->x[b].sum[lane_of(rows, t, r)]) * -8.0f;
        if (half == 0 && form != FORM_N4 && form != FORM_B8_HALVES) product[r][v] = value * scale;
        else product[r][v] = vf_fma(value, scale, product[r][v]);
      }
    }
  }
}

/* Adds a block's products with the weights, minima included, to a tile's outputs. */
FF_INLINE void add_block(int form, int rows, const tile_operands *t, int b, const uint8_t *w,
                         const uint8_t *scales, vf sum[GROUP_ROWS][TILE_VECTORS]) {
  if (form == FORM_B8_HALVES) {
    dot_block(form, rows, t, b, w, scales, sum);
    return;
  }
  vf product[GROUP_ROWS][TILE_VECTORS];
  dot_block(form, rows, t, b, w, scales, product);
  UNROLL
  for (int v = 0; v < t->vectors; v++) {
    const uint8_t *numbers = scales + v * t->scale_step;
    vf scale = load_scale(form, numbers, 0), minimum = vf_splat(0.0f);
    if (form_has_minimum(form)) minimum = load_scale(form, numbers, PANEL);
    UNROLL
    for (int r = 0; r < rows; r++) {
      sum[r][v] = vf_fma(product[r][v], scale, sum[r][v]);
      if (form_has_minimum(form))
        sum[r][v] = vf_fma(minimum, vf_splat(t->x[b].sum[lane_of(rows, t, r)]), sum[r][v]);
    }
  }
}

/* Asks for a block of a panel. */
FF_INLINE void prefetch_block(int form, const uint8_t *w, const uint8_t *scales) {
  for (int i = 0; i < quant_bytes(form); i += 64) ff_prefetch(w + i);
  ff_prefetch(scales);
}

/* One tile over all blocks: w and scales are where its first vector's lie. */
FF_INLINE void tile(int form, int rows, const tile_operands *t, int blocks, const uint8_t *w,
                    const uint8_t *scales, vf sum[GROUP_ROWS][TILE_VECTORS]) {
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < t->vectors; v++) sum[r][v] = vf_splat(0.0f);

  for (int b = 0; b < blocks; b++) {
    if (t->ahead) prefetch_block(form, w + t->ahead, scales + t->ahead);
    add_block(form, rows, t, b, w, scales, sum);
    w += quant_bytes(form);
    scales += form_scale_bytes(form);
  }
}

/* A tile of `rows` rows (4 or 1), of which the first `valid` exist, and `panels` panels from p
   on. */
FF_INLINE void run_tile(int form, int rows, int panels, const linear_task *task, int row,
                        int valid, int p, int64_t ahead) {
  int64_t bytes = form_panel_bytes(form, task->blocks * BLOCK);
  int number = form_has_f16_scale(form) ? 2 : 4;
  tile_operands t = {.x = task->x + (int64_t)(row / GROUP_ROWS) * task->blocks,
                     .lane = row % GROUP_ROWS,
                     .vectors = LANES == 16 ? panels : TILE_VECTORS,
                     .weight_step = LANES == 16 ? bytes : 4 * LANES,
                     .scale_step = LANES == 16 ? bytes : number * LANES,
                     .ahead = ahead};
  const uint8_t *weights = task->weights + p * bytes;
  const uint8_t *scales = weights + (int64_t)task->blocks * quant_bytes(form);
  for (int column = 0; column < panels * PANEL; column += t.vectors * LANES) {
    vf sum[GROUP_ROWS][TILE_VECTORS];
    tile(form, rows, &t, task->blocks, weights + column * 4, scales + column * number, sum);
    UNROLL
    for (int r = 0; r < rows; r++)
      for (int v = 0; v < t.vectors; v++)
        if (r < valid) store_sum(&task->out, row + r, p * PANEL + column + v * LANES, sum[r][v]);
    t.ahead = 0;
  }
}

#if LANES == 16
#define SINGLE_ROWS 1
#else
/* Here arithmetic is the bottleneck, and half a tile of garbage costs more than a second pass. */
#define SINGLE_ROWS 2
#endif

/*
 * Rows [begin, end) of `panels` panels. A rest of a few rows is padded: those beyond `end` are
 * computed from what lies there and not stored. The first tile asks for the panel that comes
 * next, of two the second tile for the second one, so that the memory is never idle.
 */
FF_INLINE void run_panels(int form, int panels, const linear_task *task, int begin, int end,
                          int p) {
  int64_t bytes = form_panel_bytes(form, task->blocks * BLOCK);
  int64_t ahead = end - begin <= GROUP_ROWS ? AHEAD_BYTES : panels * bytes;
  for (int row = begin; row < end;) {
    int left = end - row, single = row % GROUP_ROWS != 0 || left <= SINGLE_ROWS;
    if (single) run_tile(form, 1, panels, task, row, 1, p, ahead);
    else run_tile(form, GROUP_ROWS, panels, task, row, left, p, ahead);
    ahead = row == begin && panels == 2 ? ahead + bytes : 0;
    row += single ? 1 : GROUP_ROWS;
  }
}

/* Two panels at a time share their reads of inputs. Few rows wait for weights only, which come
   fastest one after the other. */
FF_INLINE void run_rows(int form, const linear_task *task, int begin, int end, int p, int p_end) {
  if (LANES == 16 && end - begin > GROUP_ROWS)
    for (; p + 1 < p_end; p += 2) run_panels(form, 2, task, begin, end, p);
  for (; p < p_end; p++) run_panels(form, 1, task, begin, end, p);
}

#define DEFINE_RUN(name, form)                                                       \
  static __attribute__((noinline)) void name(const linear_task *task, int row_begin, \
                                             int row_end, int p_begin, int p_end) {  \
    run_rows(form, task, row_begin, row_end, p_begin, p_end);                        \
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
  int chunk = (int)(CHUNK_BYTES / group_bytes) * GROUP_ROWS;
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
