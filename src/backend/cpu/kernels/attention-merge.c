/*
 * The merge of partial attention (the paper's POR): rows whose path several tasks shared.
 */
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

/* Merges the worker's share of the plan's (row, KV head) pairs; after all partials are written. */
FF_EXPORT void ff_attention_merge(const struct attention_image *image, int32_t worker,
                                  int32_t workers) {
  isize kv_heads = (isize)image->kv_heads, group = (isize)image->group;
  isize heads = kv_heads * group, head_dim = (isize)image->head_dim;
  isize pairs = (isize)image->merges * kv_heads;
  for (isize pair = pairs * worker / workers; pair < pairs * (worker + 1) / workers; pair++) {
    isize merge = pair / kv_heads;
    isize slot = INTS(image, merge_slot)[merge], count = INTS(image, merge_count)[merge];
    float *row = FLOATS(image, output) +
                 INTS(image, merge_row)[merge] * (isize)image->output_stride;
    for (isize head = pair % kv_heads * group; head < (pair % kv_heads + 1) * group; head++)
      merge_head(FLOATS(image, partial) + (slot * heads + head) * head_dim,
                 FLOATS(image, partial_lse) + slot * heads + head, count, heads, head_dim,
                 row + head * head_dim);
  }
}
