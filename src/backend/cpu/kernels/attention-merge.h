/*
 * The merge of partial attention (the paper's POR): rows whose path several tasks share.
 */
#ifndef FF_ATTENTION_MERGE_H
#define FF_ATTENTION_MERGE_H

#include "attention-sum.h"

/*
 * One row's output for one query head from `count` results: the sum of 2^(m_i - m) o_i over the sum
 * of 2^(m_i - m) l_i, with m the largest m_i; zeros where no token was seen. Results lie `heads`
 * heads apart.
 */
static void merge_head(const double *partial, const struct weight *weights, isize count,
                       isize heads, isize head_dim, float *to) {
  double most = weights[0].maximum, sum = 0;
  for (isize i = 1; i < count; i++)
    most = weights[i * heads].maximum > most ? weights[i * heads].maximum : most;
  for (isize i = 0; i < count; i++)
    sum += weights[i * heads].sum * power_of_two((float)(weights[i * heads].maximum - most));
  /* A float32 sum is the same whatever the last bits of the float64 are, and so is its inverse. */
  double inverse = sum > 0 ? 1.0 / (double)(float)sum : 0.0;
  for (isize d = 0; d < head_dim; d += DOUBLES) {
    vd total = vd_splat(0.0);
    for (isize i = 0; i < count; i++) {
      double scale = power_of_two((float)(weights[i * heads].maximum - most));
      total += vd_load(partial + i * heads * head_dim + d) * vd_splat(scale);
    }
    vd_store_floats(to + d, total * vd_splat(inverse));
  }
}

/*
 * Called when a task has written its partial results of a row for one KV head. Who brings the last
 * one merges the row's group of heads at once: no second meeting of the workers, and partials are
 * added in the order of their slots whoever it is.
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
  const double *partial = (const double *)(uintptr_t)image->partial;
  const struct weight *weights = (const struct weight *)(uintptr_t)image->partial_weight;
  for (isize head = kv_head * group; head < (kv_head + 1) * group; head++)
    merge_head(partial + (slot * heads + head) * head_dim, weights + slot * heads + head, count,
               heads, head_dim, output + head * head_dim);
}

#endif
