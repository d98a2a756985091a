/*
 * What all attention kernels are called with: one table of addresses and sizes, so that a call has
 * three arguments rather than thirty. Filled by backend/cpu/attention-image.ts.
 */
#ifndef FF_ATTENTION_IMAGE_H
#define FF_ATTENTION_IMAGE_H

#include "attention-tile.h"

enum { PAGE = 64 };

/* Less than any score; finite, so that differences of two of them are no NaN. */
static const float NO_SCORE = -1e30f;

/*
 * Everything the kernels need, as doubles because JavaScript writes addresses as numbers.
 * The order is that of IMAGE_FIELDS in backend/cpu/attention-image.ts.
 */
struct attention_image {
  /* Forest. */
  double row_position, start, length, first_slot, page_begin, pages;
  /* Plan. */
  double task_row_begin, task_row_end, task_segment, task_destination, destination;
  double segment_node, segment_begin, segment_end, segment_row_begin, segment_row_end;
  double worker_item, schedule;
  /*
   * Merges: (rows) the row's merge or -1, a merge's first slot and number of slots, and
   * (merges, KV heads) how many of its partial results are there, 0 between layers.
   */
  double row_merge, merge_slot, merge_count, arrived;
  /* q, k, v (rows, heads, headDim) f32 and the output (rows, query heads, headDim) f32. */
  double query, key, value, input_stride, output, output_stride;
  /* Partial outputs (slots, query heads, headDim) f64 and their struct weight (slots, heads). */
  double partial, partial_weight;
  /* Each worker's scratch memory. */
  double scratch, scratch_stride;
  /* Shape. */
  double kv_heads, group, head_dim, kv_type, scale, window;
  /* KV pages: bytes from layer to layer, page to page, head to head. */
  double keys, values, layer_stride, page_stride, head_stride;
  /* RoPE: (positions, headDim / 2) cosines and sines; (rows) where K and V of a row go. */
  double cosine, sine, write_slots;
};

#define INTS(image, field) ((const int32_t *)(uintptr_t)(image)->field)
#define FLOATS(image, field) ((float *)(uintptr_t)(image)->field)

/* The sum of probabilities, and the maximum that it and its output are relative to. */
struct weight {
  double sum, maximum;
};

#endif
