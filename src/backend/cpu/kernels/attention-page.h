/*
 * Partial attention over one KV page: scores, probabilities and outputs of a work item's query
 * vectors, six at a time.
 */
#ifndef FF_ATTENTION_PAGE_H
#define FF_ATTENTION_PAGE_H

#include "attention-softmax.h"

/* WebAssembly has no prefetch. */
#if defined(__wasm__)
enum { PREFETCHES = 0 };
#else
enum { PREFETCHES = 1 };
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

/* The page in hand. */
struct page {
  isize next_offset;        /* bytes to the page that is read next; 0 if it is this one */
  isize position;           /* of slot 0 */
  isize begin, end;         /* slots that the segment covers */
  int masked;               /* some row does not see all of them */
  int ends_chunk;           /* outputs go to the totals after this page */
  const float *value_scale; /* of integers in V; else null */
};

/* K or V of the page, as the tiles read it. */
struct plane {
  const char *data;
  int type;
  const char *next;  /* to prefetch as this is read; may be null */
  isize part, parts; /* of it, with integers */
  float *copy;       /* where to leave a copy in f32; may be null */
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

/* Scores, then probabilities, of query vectors [vector, vector + rows), rows <= TILE_ROWS. */
static struct range score_block(const struct item *it, const struct page *p,
                                const struct plane *keys, isize vector, int rows,
                                float *score) {
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
  isize skip = first * LANES * lane_bytes(keys->type);
  int integers = keys->type == FF_KV_I16;
  struct tile_args scores = {
      .c = score + first * LANES,
      .c_stride = PAGE,
      .a = it->query + vector * it->head_dim,
      .a_stride = it->head_dim,
      .b = keys->data + skip,
      .b_stride = PAGE * lane_bytes(keys->type),
      .end = integers ? it->head_dim / 2 : it->head_dim,
      .next = keys->next ? keys->next + skip : 0,
      .part = keys->part,
      .parts = keys->parts,
      .copy = keys->copy ? keys->copy + first * LANES : 0,
      .row_scale = it->query_scale + vector,
      .column_scale = integers ? scales(keys->data, it->head_dim) + first * LANES : 0,
  };
  product(keys->type, rows, (int)(last - first), &scores);

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
static void output_block(const struct item *it, const struct plane *values, isize vector, int rows,
                         const float *score, struct range seen) {
  int integers = values->type == FF_KV_I16;
  struct tile_args outputs = {
      .c = it->output + vector * it->width,
      .c_stride = it->width,
      .a = score,
      .a_stride = PAGE,
      .b = values->data,
      .b_stride = it->head_dim * lane_bytes(values->type),
      .alpha = it->alpha + vector,
      .begin = integers ? seen.low / 2 : seen.low,
      .end = integers ? (seen.high + 1) / 2 : seen.high,
      .next = values->next,
      .part = values->part,
      .parts = values->parts,
      .copy = values->copy,
      .row_scale = it->score_scale + vector,
  };
  product(values->type, rows, (int)(it->head_dim / LANES), &outputs);
}

/* Adds the block's outputs of a chunk to its totals. */
static void end_chunk(const struct item *it, isize vector, int rows) {
  isize width = it->width;
  for (isize v = vector; v < vector + rows; v++)
    add_chunk(width, it->output + v * width, it->maximum[v], it->total + v * width, it->base + v);
}

/* Asks for one of `parts` equal parts of `bytes` bytes. */
FF_INLINE void prefetch_part(const char *from, isize bytes, isize part, isize parts) {
  isize end = bytes * (part + 1) / parts;
  for (isize i = bytes * part / parts / 64 * 64; i < end; i += 64)
    __builtin_prefetch(from + i, 0, 3);
}

/* K or V as the tiles of `blocks` blocks read it and prefetch the next. */
FF_INLINE struct plane open_plane(const struct item *it, const struct page *p, const char *data,
                                  isize blocks) {
  struct plane plane = {.data = data, .type = it->kv_type, .parts = blocks};
  if (!PREFETCHES || p->next_offset == 0) return plane;
  plane.next = data + p->next_offset;
  if (it->kv_type == FF_KV_I16)
    prefetch_part((const char *)scales(plane.next, it->head_dim), PAGE * sizeof(float), 0, 1);
  return plane;
}

/* A block of query vectors: the b-th of `blocks` nearly equal ones. */
struct block {
  isize vector;
  int rows;
};
FF_INLINE struct block block_of(isize begin, isize end, isize b, isize blocks) {
  isize vector = begin + (end - begin) * b / blocks;
  return (struct block){vector, (int)(begin + (end - begin) * (b + 1) / blocks - vector)};
}

/* K or V in f32, where the first block may not see all of it. */
static void widen(const struct item *it, struct plane *plane) {
  isize bytes = lane_bytes(plane->type), count = it->head_dim * PAGE;
  for (isize i = 0; i < count; i += LANES)
    vf_store(it->wide + i, load_kv(plane->type, plane->data + i * bytes));
  *plane = (struct plane){.data = (const char *)it->wide, .type = FF_KV_F32};
}

/*
 * A page of halves and several blocks: all scores, then all outputs. The first block leaves a copy
 * in f32 on its way; K and V share its place, which so stays in the first-level cache.
 */
static void attend_wide(const struct item *it, const struct page *p, const char *keys,
                        const char *values, isize begin, isize end, isize blocks) {
  for (int pass = 0; pass < 2; pass++) {
    const char *data = pass == 0 ? keys : values;
    struct plane plane = {.data = data, .type = it->kv_type};
    if (p->masked)
      widen(it, &plane);
    else
      plane.copy = it->wide;
    for (isize b = 0; b < blocks; b++) {
      struct block own = block_of(begin, end, b, blocks);
      float *score = it->score + own.vector * PAGE;
      if (PREFETCHES && p->next_offset != 0)
        prefetch_part(data + p->next_offset, kv_bytes(it->kv_type, it->head_dim * PAGE), b, blocks);
      if (pass == 0)
        it->seen[b] = score_block(it, p, &plane, own.vector, own.rows, score);
      else if (it->seen[b].low < it->seen[b].high)
        output_block(it, &plane, own.vector, own.rows, score, it->seen[b]);
      if (pass == 1 && p->ends_chunk) end_chunk(it, own.vector, own.rows);
      plane = (struct plane){.data = (const char *)it->wide, .type = FF_KV_F32};
    }
  }
}

/*
 * Applies a page to query vectors [begin, end), in blocks of nearly equal size. Where there are
 * several, each asks for a part of the next page, so that memory delivers it while they compute.
 */
static void attend_page(const struct item *it, struct page *p, const char *keys,
                        const char *values, isize begin, isize end) {
  isize blocks = (end - begin + TILE_ROWS - 1) / TILE_ROWS;
  int halves = it->kv_type == FF_KV_F16 || it->kv_type == FF_KV_BF16;
  if (halves && blocks > 1) {
    attend_wide(it, p, keys, values, begin, end, blocks);
    return;
  }
  p->value_scale = it->kv_type == FF_KV_I16 ? scales(values, it->head_dim) : 0;
  struct plane key_plane = open_plane(it, p, keys, blocks);
  struct plane value_plane = open_plane(it, p, values, blocks);
  for (isize b = 0; b < blocks; b++) {
    struct block own = block_of(begin, end, b, blocks);
    key_plane.part = value_plane.part = b;
    struct range seen = score_block(it, p, &key_plane, own.vector, own.rows, it->score);
    if (seen.low < seen.high)
      output_block(it, &value_plane, own.vector, own.rows, it->score, seen);
    if (p->ends_chunk) end_chunk(it, own.vector, own.rows);
    if (it->kv_type != FF_KV_I16) key_plane.next = value_plane.next = 0;
  }
}

#endif
