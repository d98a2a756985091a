/*
 * Partial attention over a prefix tree (the paper's PAC): one worker's share of a plan.
 *
 * A work item keeps, for each of its query vectors, the running maximum m of the scores in base
 * 2, the running sum l of 2^(score - m) and the running output o (FlashAttention's online
 * softmax). It reads each KV page once and applies it to all of its query vectors, six at a time.
 * Results do not depend on how a plan cuts the tree into items: see attention-sum.h.
 */
#include "attention-merge.h"
#include "attention-softmax.h"

/* WebAssembly has no prefetch. */
#if defined(__wasm__)
enum { PREFETCHES = 0 };
#else
enum { PREFETCHES = 1 };
#endif

/* Pages that more than this many blocks of query vectors read are first copied to f32. */
#ifndef WIDEN_BLOCKS
#define WIDEN_BLOCKS 1
#endif

/* Keeps the compiler from calling memset, which here goes byte by byte. */
#define NO_MEMSET __asm__ volatile("" ::: "memory")

/* Up to this many blocks the first asks for all of the next page as it goes. */
#ifndef SPREAD_BLOCKS
#define SPREAD_BLOCKS 1
#endif

/* Which slots a block of query vectors sees: the union of its rows; empty where low >= high. */
struct range {
  isize low, high;
};

/* State of the work item in hand. */
struct item {
  const struct attention_image *image;
  isize head_dim, width, group, vectors, row_begin;
  int kv_type;
  const char *keys, *values; /* of the item's layer and KV head, page 0 */
  float *query;              /* (vectors, head_dim) scaled to base 2; integers with KV_I16 */
  float *query_scale;        /* (vectors) of the integers */
  /* (vectors, head_dim + LANES) output and parts of l in each lane: of the chunk in hand, and of
     the chunks before it. */
  float *output;
  double *total;
  float *maximum;            /* (vectors) what output is relative to */
  float *base;               /* (vectors) what total is relative to */
  float *alpha;              /* (vectors) what the last page scales the old output by */
  float *score;              /* (vectors, PAGE) scores, then probabilities, of the last page */
  float *score_scale;        /* (vectors) of probabilities that are integers */
  struct range *seen;        /* (blocks) slots of the last page that the block sees */
  float *wide;               /* (head_dim * PAGE) f32 copy of K or V of the page in hand */
};

/* The page in hand: its K, then its V, as the tiles read it. */
struct page {
  const char *data;
  int type;
  const char *next;    /* to prefetch; may be null */
  float *copy;         /* where to leave a copy in f32; may be null */
  isize next_offset;   /* bytes to the page that is read next; 0 if it is this one */
  isize position;      /* of slot 0 */
  isize begin, end;    /* slots that the segment covers */
  int masked;          /* some row does not see all of them */
  int ends_chunk;      /* outputs go to the totals after this page */
  const float *value_scale; /* of integers in V; else null */
};

/* The scales behind the integers of a K or V page. */
FF_INLINE const float *scales(const char *data, isize head_dim) {
  return (const float *)(data + kv_bytes(FF_KV_I16, head_dim * PAGE));
}

/* The slots of the page that the row may see: not after it, not before its window. */
FF_INLINE void visible_slots(const struct item *it, const struct page *p, isize vector,
                             isize *begin, isize *end) {
  isize row = it->row_begin + vector / it->group;
  isize own = INTS(it->image, row_position)[row] - p->position;
  isize window = (isize)it->image->window;
  *begin = p->begin;
  *end = own + 1 < p->end ? own + 1 : p->end;
  if (window > 0 && own - window + 1 > *begin) *begin = own - window + 1;
  if (*begin >= *end) *begin = *end = 0;
}

/* Scores and probabilities of query vectors [vector, vector + rows), rows <= TILE_ROWS. */
static struct range score_block(const struct item *it, const struct page *p, isize vector,
                                int rows) {
  isize begin[TILE_ROWS], end[TILE_ROWS];
  struct range seen = {p->begin, p->end};
  if (p->masked) {
    seen = (struct range){PAGE, 0};
    for (int r = 0; r < rows; r++) {
      visible_slots(it, p, vector + r, &begin[r], &end[r]);
      if (begin[r] == end[r]) continue;
      if (begin[r] < seen.low) seen.low = begin[r];
      if (end[r] > seen.high) seen.high = end[r];
    }
    if (seen.low >= seen.high) return seen;
  }
  isize first = seen.low / LANES, last = (seen.high + LANES - 1) / LANES;
  isize skip = first * LANES * lane_bytes(p->type);
  int integers = p->type == FF_KV_I16;
  float *score = it->score + vector * PAGE;
  struct tile_args scores = {
      .c = score + first * LANES,
      .c_stride = PAGE,
      .a = it->query + vector * it->head_dim,
      .a_stride = it->head_dim,
      .b = p->data + skip,
      .b_stride = PAGE * lane_bytes(p->type),
      .end = integers ? it->head_dim / 2 : it->head_dim,
      .next = p->next ? p->next + skip : 0,
      .copy = p->copy ? p->copy + first * LANES : 0,
      .row_scale = it->query_scale + vector,
      .column_scale = integers ? scales(p->data, it->head_dim) + first * LANES : 0,
  };
  product(p->type, rows, (int)(last - first), &scores);

  struct softmax state = {
      .score = score,
      .maximum = it->maximum + vector,
      .sum = it->output + vector * it->width + it->head_dim,
      .stride = it->width,
      .alpha = it->alpha + vector,
      .value_scale = p->value_scale,
      .scale = it->score_scale + vector,
  };
  if (!p->masked && seen.low == 0 && seen.high == PAGE) {
    update_softmax(rows, 0, VECTORS, &state);
    return seen;
  }
  for (int r = 0; r < rows; r++)
    mask_scores(score + r * PAGE, first, last, p->masked ? begin[r] : seen.low,
                p->masked ? end[r] : seen.high);
  update_softmax(rows, first, last, &state);
  return seen;
}

/* Adds the block's probabilities times V to its outputs. */
static void output_block(const struct item *it, const struct page *p, isize vector, int rows,
                         struct range seen) {
  int integers = p->type == FF_KV_I16;
  struct tile_args outputs = {
      .c = it->output + vector * it->width,
      .c_stride = it->width,
      .a = it->score + vector * PAGE,
      .a_stride = PAGE,
      .b = p->data,
      .b_stride = it->head_dim * lane_bytes(p->type),
      .alpha = it->alpha + vector,
      .begin = integers ? seen.low / 2 : seen.low,
      .end = integers ? (seen.high + 1) / 2 : seen.high,
      .next = p->next,
      .copy = p->copy,
      .row_scale = it->score_scale + vector,
  };
  product(p->type, rows, (int)(it->head_dim / LANES), &outputs);
}

/* Adds the block's outputs of a chunk to its totals. */
static void end_chunk(const struct item *it, isize vector, int rows) {
  isize width = it->width;
  for (isize v = vector; v < vector + rows; v++)
    add_chunk(width, it->output + v * width, it->maximum[v], it->total + v * width, it->base + v);
}

/* Copies K or V of the page to f32, for pages whose first block may not see all of it. */
static void widen(const struct item *it, struct page *p) {
  isize bytes = lane_bytes(p->type), count = it->head_dim * PAGE;
  for (isize i = 0; i < count; i += LANES)
    vf_store(it->wide + i, load_kv(p->type, p->data + i * bytes));
  p->data = (const char *)it->wide;
  p->type = FF_KV_F32;
}

/* Asks for one of `parts` equal parts of the K or V that is read next. */
FF_INLINE void prefetch_part(const char *next, isize bytes, isize part, isize parts) {
  isize end = bytes * (part + 1) / parts;
  for (isize i = bytes * part / parts / 64 * 64; i < end; i += 64)
    __builtin_prefetch(next + i, 0, 2);
}

/*
 * Applies a page to query vectors [begin, end), in blocks of nearly equal size. Where there are
 * several, each asks for a part of the next page, so that memory delivers it while they compute,
 * and the first leaves a copy in f32 on its way. K and V share the copy's place, which so
 * stays in the first-level cache.
 */
static void attend_page(const struct item *it, struct page *p, const char *keys,
                        const char *values, isize begin, isize end) {
  isize blocks = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
  int halves = it->kv_type == FF_KV_F16 || it->kv_type == FF_KV_BF16;
  int wide = halves && blocks > WIDEN_BLOCKS;
  p->value_scale = it->kv_type == FF_KV_I16 ? scales(values, it->head_dim) : 0;
  for (int pass = 0; pass < 2; pass++) {
    p->data = pass == 0 ? keys : values;
    const char *next = PREFETCHES && p->next_offset != 0 ? p->data + p->next_offset : 0;
    p->next = blocks > SPREAD_BLOCKS ? 0 : next;
    p->copy = wide && !p->masked ? it->wide : 0;
    p->type = it->kv_type;
    if (wide && p->masked) widen(it, p);
    for (isize b = 0; b < blocks; b++) {
      isize vector = begin + (end - begin) * b / blocks;
      int rows = (int)(begin + (end - begin) * (b + 1) / blocks - vector);
      if (next && blocks > SPREAD_BLOCKS)
        prefetch_part(next, kv_bytes(it->kv_type, it->head_dim * PAGE), b, blocks);
      if (pass == 0)
        it->seen[b] = score_block(it, p, vector, rows);
      else if (it->seen[b].low < it->seen[b].high)
        output_block(it, p, vector, rows, it->seen[b]);
      if (pass == 1 && p->ends_chunk) end_chunk(it, vector, rows);
      p->next = 0;
      if (p->copy) {
        p->data = (const char *)it->wide;
        p->type = FF_KV_F32;
        p->copy = 0;
      }
    }
  }
}

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
    struct page p;
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
