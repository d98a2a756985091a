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

/* 4 inputs of a column to their place in a group of 16 columns x 4 inputs. */
FF_INLINE void put_group(const uint8_t *bytes, uint8_t *group, int column, int paired) {
  if (paired) {
    uint8_t *first = group + column / LANES * (4 * LANES) + column % LANES * 2;
    __builtin_memcpy(first, bytes, 2);
    __builtin_memcpy(first + 2 * LANES, bytes + 2, 2);
  } else {
    __builtin_memcpy(group + column * 4, bytes, 4);
  }
}

/* Whether the target's dot products want their weights in pairs (dot.h). */
#if defined(FF_PAIRED)
#define PAIRED_BYTES 1
#else
#define PAIRED_BYTES 0
#endif
#if defined(FF_NARROW_NIBBLES)
#define PAIRED_NIBBLES 0
#else
#define PAIRED_NIBBLES PAIRED_BYTES
#endif

FF_INLINE void put_bytes(const int8_t *q, uint8_t *out, int column) {
  uint8_t bytes[32];
  for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)(q[i] + BYTE_BIAS);
  for (int g = 0; g < 8; g++) put_group(bytes + 4 * g, out + g * 64, column, PAIRED_BYTES);
}

FF_INLINE void put_nibbles(const int8_t *q, uint8_t *out, int column, int bias) {
  uint8_t bytes[16];
  for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)((q[i] + bias) | (q[i + 16] + bias) << 4);
  for (int g = 0; g < 4; g++) put_group(bytes + 4 * g, out + g * 64, column, PAIRED_NIBBLES);
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

/* Inputs [begin, end) of a float column of `size` bytes an element. */
FF_INLINE void repack_dense(int size, const uint8_t *row, uint8_t *panel, int column, int begin,
                            int end) {
  for (int64_t k = begin; k < end; k++) {
    uint8_t *to = panel + (k * PANEL + column) * size;
    if (row) __builtin_memcpy(to, row + k * size, size);
    else __builtin_memset(to, 0, size);
  }
}

static void repack_any(int type, const uint8_t *row, uint8_t *panel, int column, int begin,
                       int end) {
  int blocks = end / 32;
  switch (type) {
    case TYPE_F32: repack_dense(4, row, panel, column, begin, end); break;
    case TYPE_F16: case TYPE_BF16: repack_dense(2, row, panel, column, begin, end); break;
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
  /* Floats go in short pieces, so that a cache line gets all its columns at once. */
  int step = type <= TYPE_BF16 ? 64 : columns;
  for (int p = panel_begin; p < panel_end; p++)
    for (int begin = 0; begin < columns; begin += step)
      for (int c = 0; c < PANEL; c++) {
        int64_t output = (int64_t)p * PANEL + c;
        const uint8_t *row = rows + (output - (int64_t)panel_begin * PANEL) * row_size;
        int end = begin + step < columns ? begin + step : columns;
        repack_any(type, output < outputs ? row : 0, panels + p * panel_size, c, begin, end);
      }
}
