/*
 * Rows of a model file to panels (panels.h): done once when a model is loaded, by all workers.
 */
#include "dot.h"
#include "panels.h"

/* What is added to a byte so that the target's dot product can take it. */
#if defined(FF_UNSIGNED8)
#define BYTE_BIAS 128
#else
#define BYTE_BIAS 0
#endif

/* Where input j (of 4) of a column lies in a group of 16 columns x 4 inputs. */
FF_INLINE int place(int column, int j) {
#if defined(FF_PAIRED)
  int first = column / LANES * LANES, lane = column % LANES;
  return first * 4 + j / 2 * (2 * LANES) + lane * 2 + j % 2;
#else
  return column * 4 + j;
#endif
}

FF_INLINE void put_bytes(const int8_t *q, uint8_t *out, int column) {
  for (int i = 0; i < 32; i++)
    out[i / 4 * 64 + place(column, i % 4)] = (uint8_t)(q[i] + BYTE_BIAS);
}

FF_INLINE void put_nibbles(const int8_t *q, uint8_t *out, int column, int bias) {
  for (int i = 0; i < 16; i++)
    out[i / 4 * 64 + place(column, i % 4)] =
        (uint8_t)((q[i] + bias) | (q[i + 16] + bias) << 4);
}

FF_INLINE void put_scale(int form, uint8_t *scales, int index, float value) {
  if (form_has_f16_scale(form)) {
    uint16_t lanes[LANES];
    vf_store_f16(lanes, vf_splat(value));
    ((uint16_t *)scales)[index] = lanes[0];
  } else {
    ((float *)scales)[index] = value;
  }
}

/* One column of a panel; without a source row (past the last output) it becomes zeros. */
FF_INLINE void repack_column(int type, int form, const uint8_t *row, uint8_t *panel, int column,
                             int blocks) {
  int quants = form_is_nibbles(form) ? 16 * PANEL : 32 * PANEL;
  uint8_t *scales = panel + (int64_t)blocks * quants;
  for (int b = 0; b < blocks; b++) {
    weight_block block = {{0}, {0.0f, 0.0f}, 0.0f};
    if (row) unpack_block(type, row, b, &block);
    uint8_t *out = panel + (int64_t)b * quants;
    if (form_is_nibbles(form)) put_nibbles(block.q, out, column, form == FORM_N4 ? 8 : 0);
    else put_bytes(block.q, out, column);
    put_scale(form, scales, column, block.scale[0]);
    if (form == FORM_B8_HALVES) put_scale(form, scales, PANEL + column, block.scale[1]);
    if (form_has_minimum(form)) put_scale(form, scales, PANEL + column, block.minimum);
    scales += form_scale_bytes(form);
  }
}

FF_INLINE int form_of(int type) {
  switch (type) {
    case TYPE_Q4_0: return FORM_N4;
    case TYPE_Q4_1: return FORM_N4_MIN;
    case TYPE_Q4_K: return FORM_N4_MIN32;
    case TYPE_Q5_1: case TYPE_Q5_K: return FORM_B8_MIN32;
    case TYPE_Q6_K: return FORM_B8_HALVES;
    default: return FORM_B8;
  }
}

#define DEFINE_REPACK(type)                                                            \
  static __attribute__((noinline)) void repack_##type(const uint8_t *row, uint8_t *panel, \
                                                      int column, int blocks) {        \
    repack_column(TYPE_##type, form_of(TYPE_##type), row, panel, column, blocks);      \
  }
DEFINE_REPACK(Q8_0)
DEFINE_REPACK(Q4_0)
DEFINE_REPACK(Q4_1)
DEFINE_REPACK(Q5_0)
DEFINE_REPACK(Q5_1)
DEFINE_REPACK(Q4_K)
DEFINE_REPACK(Q5_K)
DEFINE_REPACK(Q6_K)

FF_INLINE void repack_dense(int size, const uint8_t *row, uint8_t *panel, int column,
                            int columns) {
  for (int k = 0; k < columns; k++)
    for (int i = 0; i < size; i++)
      panel[((int64_t)k * PANEL + column) * size + i] = row ? row[(int64_t)k * size + i] : 0;
}

static void repack_any(int type, const uint8_t *row, uint8_t *panel, int column, int columns) {
  int blocks = columns / 32;
  switch (type) {
    case TYPE_F32: repack_dense(4, row, panel, column, columns); break;
    case TYPE_F16: case TYPE_BF16: repack_dense(2, row, panel, column, columns); break;
    case TYPE_Q8_0: repack_Q8_0(row, panel, column, blocks); break;
    case TYPE_Q4_0: repack_Q4_0(row, panel, column, blocks); break;
    case TYPE_Q4_1: repack_Q4_1(row, panel, column, blocks); break;
    case TYPE_Q5_0: repack_Q5_0(row, panel, column, blocks); break;
    case TYPE_Q5_1: repack_Q5_1(row, panel, column, blocks); break;
    case TYPE_Q4_K: repack_Q4_K(row, panel, column, blocks); break;
    case TYPE_Q5_K: repack_Q5_K(row, panel, column, blocks); break;
    case TYPE_Q6_K: repack_Q6_K(row, panel, column, blocks); break;
  }
}

/*
 * Panels [panel_begin, panel_end) of a matrix of `outputs` rows of `columns` weights: `rows` are
 * the file's rows from output 16 * panel_begin on, `panels` the whole repacked matrix.
 */
FF_EXPORT void ff_repack(int type, const uint8_t *rows, uint8_t *panels, int outputs, int columns,
                         int panel_begin, int panel_end) {
  int form = type <= TYPE_BF16 ? type : form_of(type);
  int64_t row_size = row_bytes(type, columns), panel_size = form_panel_bytes(form, columns);
  for (int p = panel_begin; p < panel_end; p++)
    for (int c = 0; c < PANEL; c++) {
      int64_t output = (int64_t)p * PANEL + c;
      const uint8_t *row = rows + (output - (int64_t)panel_begin * PANEL) * row_size;
      repack_any(type, output < outputs ? row : 0, panels + p * panel_size, c, columns);
    }
}
