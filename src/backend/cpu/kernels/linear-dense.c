/*
 * Products of batched rows with float weights (F32, F16, BF16): y = x W^T + bias, or y += that.
 *
 * Weights lie in panels of (inputs, 16) elements and are widened to float32; x is plain float32.
 * A tile is some rows x some vectors of output columns, which may span panels. Each output adds
 * its terms one by one in the order of the inputs, so the tile's shape does not show in results.
 */
#include "output.h"
#include "panels.h"
#include "unroll.h"

#define TILE_ROWS 8
#define TILE_VECTORS 4
#define CHUNK_BYTES (384 * 1024)
#define CHUNK_ROWS_LEAST 128
/* How far ahead of their use weights are asked for when they are read only once. */
#define AHEAD_INPUTS 64

/* Rows x vectors of the tiles; their product is what the registers hold. */
#if LANES == 16
#define LARGE_ROWS 8
#define LARGE_VECTORS 2
#elif defined(__ARM_NEON)
#define LARGE_ROWS 4
#define LARGE_VECTORS 4
#else
#define LARGE_ROWS 4
#define LARGE_VECTORS 2
#endif

typedef struct {
  const float *x;
  const uint8_t *weights;
  int64_t columns;
  linear_output out;
} dense_task;

FF_INLINE int element_bytes(int form) { return form == FORM_F32 ? 4 : 2; }

FF_INLINE int ahead_bytes(int form) { return AHEAD_INPUTS * PANEL * element_bytes(form); }

FF_INLINE vf load_weights(int form, const uint8_t *p) {
  if (form == FORM_F32) return vf_load((const float *)p);
  return form == FORM_F16 ? vf_load_f16((const uint16_t *)p) : vf_load_bf16((const uint16_t *)p);
}

/* Rows [row, row + rows), of which `valid` exist, x vectors [first, first + vectors). Rows that do
   not exist repeat the last one. Weights `ahead` bytes further on are asked for meanwhile. */
FF_INLINE void dense_tile(int form, int rows, int vectors, const dense_task *task, int row,
                          int valid, int first, int64_t ahead) {
  int size = element_bytes(form);
  const uint8_t *w[TILE_VECTORS];
  const float *x[TILE_ROWS];
  vf sum[TILE_ROWS][TILE_VECTORS];
  for (int v = 0; v < vectors; v++) {
    int64_t column = (int64_t)(first + v) * LANES;
    w[v] = task->weights + (column / PANEL * PANEL * task->columns + column % PANEL) * size;
  }
  UNROLL
  for (int r = 0; r < rows; r++) {
    x[r] = task->x + (row + (r < valid ? r : valid - 1)) * task->columns;
    UNROLL
    for (int v = 0; v < vectors; v++) sum[r][v] = vf_splat(0.0f);
  }
  NO_UNROLL
  for (int64_t k = 0; k < task->columns; k++) {
    vf weight[TILE_VECTORS];
    UNROLL
    for (int v = 0; v < vectors; v++) {
      const uint8_t *p = w[v] + k * PANEL * size;
      ff_prefetch(p + ahead);
      weight[v] = load_weights(form, p);
    }
    UNROLL
    for (int r = 0; r < rows; r++) {
      vf input = vf_splat(x[r][k]);
      UNROLL
      for (int v = 0; v < vectors; v++) sum[r][v] = vf_fma(input, weight[v], sum[r][v]);
    }
  }
  UNROLL
  for (int r = 0; r < rows; r++)
    for (int v = 0; v < vectors; v++)
      if (r < valid) store_sum(&task->out, row + r, (first + v) * LANES, sum[r][v]);
}

FF_INLINE void dense_rows(int form, int vectors, const dense_task *task, int begin, int end,
                          int first) {
  int64_t next = vectors * LANES * task->columns * element_bytes(form);
  int64_t ahead = end - begin <= LARGE_ROWS ? ahead_bytes(form) : next;
  for (int row = begin; row < end; ahead = 0) {
    int left = end - row;
    if (left == 1)
      dense_tile(form, 1, vectors, task, row, 1, first, ahead);
    else if (left <= 4 || LARGE_ROWS == 4)
      dense_tile(form, 4, vectors, task, row, left, first, ahead);
    else
      dense_tile(form, LARGE_ROWS, vectors, task, row, left, first, ahead);
    row += left == 1 ? 1 : left <= 4 ? 4 : LARGE_ROWS;
  }
}

FF_INLINE void dense_panels(int form, const dense_task *task, int begin, int end, int p_begin,
                            int p_end) {
  int v = p_begin * (PANEL / LANES), v_end = p_end * (PANEL / LANES);
  /* A single row has one chain of additions per vector: more vectors hide their latency. */
  for (; end - begin == 1 && v + 4 <= v_end; v += 4)
    dense_tile(form, 1, 4, task, begin, 1, v, ahead_bytes(form));
  for (; v + LARGE_VECTORS <= v_end; v += LARGE_VECTORS)
    dense_rows(form, LARGE_VECTORS, task, begin, end, v);
  for (; v < v_end; v++) dense_rows(form, 1, task, begin, end, v);
}

#define DEFINE_RUN(name, form)                                                       \
  static __attribute__((noinline)) void name(const dense_task *task, int row_begin,  \
                                             int row_end, int p_begin, int p_end) {  \
    dense_panels(form, task, row_begin, row_end, p_begin, p_end);                    \
  }
DEFINE_RUN(run_f32, FORM_F32)
DEFINE_RUN(run_f16, FORM_F16)
DEFINE_RUN(run_bf16, FORM_BF16)

/* As ff_linear for the forms F32, F16 and BF16; x: float32 (rows, columns), not quantised. */
FF_EXPORT void ff_linear_dense(int form, const float *x, const uint8_t *weights,
                               const float *bias, float *y, int y_stride, int row_begin,
                               int row_end, int panel_begin, int panel_end, int columns,
                               int outputs, int accumulate) {
  dense_task task = {x, weights, columns, {y, y_stride, bias, outputs, accumulate}};
  int chunk = (int)(CHUNK_BYTES / (4 * (int64_t)(columns > 0 ? columns : 1)));
  chunk = chunk < CHUNK_ROWS_LEAST ? CHUNK_ROWS_LEAST : chunk / TILE_ROWS * TILE_ROWS;
  for (int row = row_begin; row < row_end; row += chunk) {
    int end = row + chunk < row_end ? row + chunk : row_end;
    if (form == FORM_F32) run_f32(&task, row, end, panel_begin, panel_end);
    else if (form == FORM_F16) run_f16(&task, row, end, panel_begin, panel_end);
    else run_bf16(&task, row, end, panel_begin, panel_end);
  }
}
