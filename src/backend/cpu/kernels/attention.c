/*
 * Partial attention over a prefix tree (the paper's PAC): one worker's share of a plan.
 *
 * A work item keeps, for each of its query vectors, the running maximum m of the scores in base
 * 2, the running sum l of 2^(score - m) and the running output o (FlashAttention's online
 * softmax). It reads each KV page once and applies it to all of its query vectors, six at a time.
 * Results do not depend on how a plan cuts the tree into items: see attention-sum.h.
 */
#include "attention-merge.h"
#include "attention-page.h"

/* Keeps the compiler from calling memset, which here goes byte by byte. */
#define NO_MEMSET __asm__ volatile("" ::: "memory")

/*
 * The page in which a segment begins, to prefetch it; for an empty segment at a node's end any
 * number, which is harmless there.
 */
FF_INLINE isize first_page(const struct attention_image *image, isize segment) {
  isize node = INTS(image, segment_node)[segment];
  isize slot = INTS(image, first_slot)[node] + INTS(image, segment_begin)[segment];
  return INTS(image, pages)[INTS(image, page_begin)[node] + slot / PAGE];
}

/* Applies one segment to the rows it is for; `next_page` is read after it. */
static void attend_segment(const struct item *it, isize segment, isize next_page) {
  const struct attention_image *image = it->image;
  isize node = INTS(image, segment_node)[segment];
  isize length = INTS(image, length)[node];
  isize begin = INTS(image, segment_begin)[segment];
  isize end = INTS(image, segment_end)[segment];
  if (end > length) end = length;
  isize rows_begin = INTS(image, segment_row_begin)[segment];
  isize rows_end = INTS(image, segment_row_end)[segment];
  if (begin >= end || rows_begin >= rows_end) return;

  const int32_t *position = INTS(image, row_position);
  isize least = position[rows_begin], most = position[rows_begin];
  for (isize row = rows_begin + 1; row < rows_end; row++) {
    if (position[row] < least) least = position[row];
    if (position[row] > most) most = position[row];
  }
  isize start = INTS(image, start)[node], window = (isize)image->window;
  if (end > most + 1 - start) end = most + 1 - start;
  if (window > 0 && begin < least - window + 1 - start) begin = least - window + 1 - start;
  if (begin >= end) return;
  isize offset = INTS(image, first_slot)[node];
  const int32_t *pages = INTS(image, pages) + INTS(image, page_begin)[node];
  isize stride = (isize)image->page_stride;
  isize last = (offset + end - 1) / PAGE;
  for (isize i = (offset + begin) / PAGE; i <= last; i++) {
    isize here = i * PAGE - offset; /* token of the node in slot 0 */
    struct page p = {0};
    p.position = start + here;
    p.begin = begin > here ? begin - here : 0;
    p.end = end - here < PAGE ? end - here : PAGE;
    p.masked = p.position + p.end - 1 > least ||
               (window > 0 && p.position + p.begin <= most - window);
    p.ends_chunk = i == last || (i + 1) % CHUNK_PAGES == 0;
    p.next_offset = ((i < last ? pages[i + 1] : next_page) - pages[i]) * stride;
    attend_page(it, &p, it->keys + pages[i] * stride, it->values + pages[i] * stride,
                (rows_begin - it->row_begin) * it->group, (rows_end - it->row_begin) * it->group);
  }
}

/* Fills the item's state: queries scaled so that scores are in base 2, nothing attended yet. */
static void begin_item(const struct item *it, isize kv_head) {
  const struct attention_image *image = it->image;
  vf scale = vf_splat((float)image->scale);
  for (isize v = 0; v < it->vectors; v++) {
    isize row = it->row_begin + v / it->group;
    const float *from = FLOATS(image, query) + row * (isize)image->input_stride +
                        (kv_head * it->group + v % it->group) * it->head_dim;
    float *query = it->query + v * it->head_dim;
    for (isize i = 0; i < it->head_dim; i += LANES) vf_store(query + i, vf_load(from + i) * scale);
    if (it->kv_type == FF_KV_I16)
      it->query_scale[v] = quantize_key(query, it->head_dim, (uint16_t *)query);
    for (isize i = v * it->width; i < (v + 1) * it->width; i += LANES) {
      vf_store(it->output + i, vf_splat(0.0f));
      vd_store(it->total + i, vd_splat(0.0));
      vd_store(it->total + i + DOUBLES, vd_splat(0.0));
      NO_MEMSET;
    }
    it->maximum[v] = it->base[v] = NO_SCORE;
  }
}

/*
 * Writes each vector's output where the plan wants its row: final or partial, and merges the rows
 * for which no partial result is missing any more.
 */
static void end_item(const struct item *it, isize kv_head, const int32_t *destination) {
  const struct attention_image *image = it->image;
  isize heads = (isize)image->kv_heads * it->group, head_dim = it->head_dim;
  for (isize v = 0; v < it->vectors; v++) {
    isize slot = destination[v / it->group];
    isize head = kv_head * it->group + v % it->group;
    const double *total = it->total + v * it->width;
    struct weight weight = {sum_of_doubles(total + head_dim), it->maximum[v]};
    if (slot == -2) continue;
    if (slot == -1) {
      isize row = it->row_begin + v / it->group;
      merge_head(total, &weight, 1, 0, head_dim,
                 FLOATS(image, output) + row * (isize)image->output_stride + head * head_dim);
      continue;
    }
    double *to = (double *)(uintptr_t)image->partial + (slot * heads + head) * head_dim;
    ((struct weight *)(uintptr_t)image->partial_weight)[slot * heads + head] = weight;
    for (isize i = 0; i < head_dim; i += DOUBLES) vd_store(to + i, vd_load(total + i));
  }
  for (isize row = 0; row < it->vectors / it->group; row++)
    if (destination[row] >= 0) partial_arrived(image, it->row_begin + row, kv_head);
}

/* Bytes of scratch memory that a worker needs for items of up to `vectors` query vectors. */
FF_EXPORT int32_t ff_attention_scratch(int32_t head_dim, int32_t vectors) {
  isize vector = head_dim + 3 * (head_dim + LANES) + 5 + PAGE + (isize)(sizeof(struct range) / 4);
  isize floats = vectors * vector + head_dim * PAGE + 11 * 16;
  return (int32_t)(floats * 4);
}

/* Takes `count` floats, rounded up to whole cache lines, from scratch memory. */
FF_INLINE float *take(float **scratch, isize count) {
  float *taken = *scratch;
  *scratch += (count + 15) & ~(isize)15;
  return taken;
}

static void attend_item(const struct attention_image *image, isize layer, isize work,
                        float *scratch) {
  isize kv_heads = (isize)image->kv_heads;
  isize task = work / kv_heads, kv_head = work % kv_heads;
  isize base = layer * (isize)image->layer_stride + kv_head * (isize)image->head_stride;
  struct item it;
  it.image = image;
  it.head_dim = (isize)image->head_dim;
  it.group = (isize)image->group;
  it.row_begin = INTS(image, task_row_begin)[task];
  it.vectors = (INTS(image, task_row_end)[task] - it.row_begin) * it.group;
  it.kv_type = (int)image->kv_type;
  it.keys = (const char *)(uintptr_t)image->keys + base;
  it.values = (const char *)(uintptr_t)image->values + base;
  it.width = it.head_dim + LANES;
  it.query = take(&scratch, it.vectors * it.head_dim);
  it.query_scale = take(&scratch, it.vectors);
  it.output = take(&scratch, it.vectors * it.width);
  it.total = (double *)take(&scratch, it.vectors * it.width * 2);
  it.maximum = take(&scratch, it.vectors);
  it.base = take(&scratch, it.vectors);
  it.alpha = take(&scratch, it.vectors);
  it.score = take(&scratch, it.vectors * PAGE);
  it.score_scale = take(&scratch, it.vectors);
  it.seen = (struct range *)take(&scratch, it.vectors * (isize)(sizeof(struct range) / 4));
  it.wide = take(&scratch, it.head_dim * PAGE);

  begin_item(&it, kv_head);
  const int32_t *segments = INTS(image, task_segment);
  isize end = segments[task + 1];
  for (isize s = segments[task]; s < end; s++)
    attend_segment(&it, s, first_page(image, s + 1 < end ? s + 1 : s));
  end_item(&it, kv_head, INTS(image, destination) + INTS(image, task_destination)[task]);
}

/*
 * Runs the worker's share of the plan's work items for one layer. All outputs are there when all
 * workers have returned.
 */
FF_EXPORT void ff_attention_run(const struct attention_image *image, int32_t layer,
                                int32_t worker) {
  float *scratch = (float *)((uintptr_t)image->scratch + worker * (uintptr_t)image->scratch_stride);
  const int32_t *schedule = INTS(image, schedule);
  isize end = INTS(image, worker_item)[worker + 1];
  for (isize i = INTS(image, worker_item)[worker]; i < end; i++)
    attend_item(image, layer, schedule[i], scratch);
}
