/*
 * The merge of partial attention (the paper's POR): rows whose path several tasks share.
 */
#ifndef FF_ATTENTION_MERGE_H
#define FF_ATTENTION_MERGE_H

#include "attention-image.h"

/*
 * One row's output for one query head from `count` partial results: o = sum of w_i o_i over the
 * sum of w_i, w_i = 2^(lse_i - m) with m the largest lse. Partials lie `heads` heads apart.
 */
static void merge_head(const float *partial, const float *lse, isize count, isize heads,
                       isize head_dim, float *to) {
  float most = NO_SCORE, total = 0;
  for (isize i = 0; i < count; i++) most = lse[i * heads] > most ? lse[i * heads] : most;
  for (isize i = 0; i < count; i++) total += vf_exp2(vf_splat(lse[i * heads] - most))[0];
  vf scale = vf_splat(1.0f / total);
  for (isize i = 0; i < count; i++) {
    vf weight = vf_exp2(vf_splat(lse[i * heads] - most)) * scale;
    const float *from = partial + i * heads * head_dim;
    for (isize d = 0; d < head_dim; d += LANES) {
      vf part = vf_load(from + d) * weight;
      vf_store(to + d, i == 0 ? part : vf_load(to + d) + part);
    }
  }
}

/*
 * Called when a task has written its partial results of a row for one KV head. Who brings the last
 * one merges the row's group of heads at once: no second meeting of the workers, and the result
 * does not depend on who it is, because partials are added in the order of their slots.
 */
static void partial_arrived(const struct attention_image *image, isize row, isize kv_head) {
  isize kv_heads = (isize)image->kv_heads, group = (isize)image->group;
  isize heads = kv_heads * group, head_dim = (isize)image->head_dim;
  isize merge = INTS(image, row_merge)[row];
  isize slot = INTS(image, merge_slot)[merge], count = INTS(image, merge_count)[merge];
  int32_t *arrived = (int32_t *)(uintptr_t)image->arrived + merge * kv_heads + kv_head;
  if (__atomic_add_fetch(arrived, 1, __ATOMIC_ACQ_REL) < count) return;
  *arrived = 0;
  float *output = FLOATS(image, output) + row * (isize)image->output_stride;
  for (isize head = kv_head * group; head < (kv_head + 1) * group; head++)
    merge_head(FLOATS(image, partial) + (slot * heads + head) * head_dim,
               FLOATS(image, partial_lse) + slot * heads + head, count, heads, head_dim,
               output + head * head_dim);
}

#endif
