/*
 * The register tile under partial attention: C += A x B for a few query vectors against the rows of
 * a KV page. Both products of attention have this one shape. Scores are Q (vectors x headDim)
 * times a transposed K page (headDim x 64 keys); outputs are P (vectors x keys) times a V page
 * (keys x headDim). So keys, then head dimensions, lie in SIMD lanes, no transposition is needed,
 * and the same code serves a node shared by hundreds of rows and one request's own tokens.
 *
 * Sizes are compile-time constants: only then do the accumulators stay in registers. Every sum
 * is one chain of multiply-adds in the order of k, whatever the tile's size, so that an output
 * does not depend on the query vectors beside it.
 */
#ifndef FF_ATTENTION_TILE_H
#define FF_ATTENTION_TILE_H

#include "attention-pairs.h"

/* Sizes and offsets: as wide as an address on every target. */
typedef intptr_t isize;

/* Element types of KV pages. */
enum { FF_KV_F32 = 0, FF_KV_F16 = 1, FF_KV_BF16 = 2, FF_KV_I16 = 3 };

/*
 * Tile size: query vectors x SIMD vectors of accumulators, plus one row of B and one broadcast,
 * must fit the register file (32 registers on AVX-512 and NEON, 16 on AVX2 and WebAssembly).
 */
#if defined(FF_AVX512) || defined(__aarch64__)
enum { TILE_ROWS = 6, TILE_WIDTH = 4 };
#elif defined(__wasm__)
enum { TILE_ROWS = 4, TILE_WIDTH = 2 };
#else
enum { TILE_ROWS = 6, TILE_WIDTH = 2 };
#endif
/* With one or two rows, registers are left for a wider tile: more chains hide their latency. */
enum { FEW_ROWS = 2, WIDEST = 4 };

/*
 * One product: C (rows x width vectors) = C * alpha (or 0) + A x B over k in [begin, end). With
 * 16-bit integers k counts pairs, and A holds them where it otherwise has floats.
 */
struct tile_args {
  float *c;
  isize c_stride; /* floats */
  const float *a;
  isize a_stride; /* floats */
  const char *b;
  isize b_stride; /* bytes */
  /* (rows) what C is scaled by first; a null pointer means that C starts at 0. */
  const float *alpha;
  isize begin;
  isize end;
  /* What to prefetch while reading B, laid out as B is; may be null. Of integers only a part. */
  const char *next;
  isize part, parts;
  /* Integers: (rows) what sums are scaled by, and (columns) the same if C starts at 0. */
  const float *row_scale;
  const float *column_scale;
  /* Where B goes as f32 for the blocks that follow, with B's shape; may be null. */
  float *copy;
};

/*
 * Finite halves to floats; where there is no instruction, by moving the bits into place and
 * scaling the exponent (exact, subnormals included).
 */
FF_INLINE vf load_finite_f16(const uint16_t *from) {
#if LANES > 4 || defined(__aarch64__)
  return vf_load_f16(from);
#else
  typedef int16_t signed_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
  vi wide = __builtin_convertvector(*(const signed_halves *)from, vi);
  return (vf)((wide << 13) & (int)0x8fffffff) * 0x1p112f;
#endif
}

FF_INLINE vf load_kv(const int type, const char *from) {
  if (type == FF_KV_F16) return load_finite_f16((const uint16_t *)from);
  if (type == FF_KV_BF16) return vf_load_bf16((const uint16_t *)from);
  return vf_load((const float *)from);
}

/* Bytes that a lane reads: a number, or a pair of integers. */
FF_INLINE isize lane_bytes(const int type) {
  return type == FF_KV_F16 || type == FF_KV_BF16 ? 2 : 4;
}

/* Bytes of `count` numbers without their scales. */
FF_INLINE isize kv_bytes(const int type, isize count) {
  return count * (type == FF_KV_F32 ? 4 : 2);
}

/* One step in k. Prefetch and copy are for the first block that reads the page. */
FF_INLINE void tile_step(const int rows, const int width, const int type, vf (*acc)[WIDEST],
                         const float *a, isize a_stride, const char *b, const char *next,
                         float *copy) {
  vf row[WIDEST];
#pragma GCC unroll 4
  for (int w = 0; w < width; w++) row[w] = load_kv(type, b + w * LANES * lane_bytes(type));
  if (next)
    for (isize i = 0; i < width * LANES * lane_bytes(type); i += 64)
      __builtin_prefetch(next + i, 0, 3);
  if (copy) {
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) vf_store(copy + w * LANES, row[w]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    vf broadcast = vf_splat(a[r * a_stride]);
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) acc[r][w] = vf_fma(broadcast, row[w], acc[r][w]);
  }
}

/* Steps in k over [begin, end). `aside`: prefetch or copy as asked. */
FF_INLINE void tile_steps(const int rows, const int width, const int type, const int aside,
                          const struct tile_args *t, vf (*acc)[WIDEST]) {
  const isize a_stride = t->a_stride, b_stride = t->b_stride;
  const isize copy_stride = b_stride / lane_bytes(type);
  const float *a = t->a + t->begin;
  const char *b = t->b + t->begin * b_stride;
  const char *next = aside && t->next ? t->next + t->begin * b_stride : 0;
  float *copy = aside && t->copy ? t->copy + t->begin * copy_stride : 0;
  for (isize k = t->end - t->begin; k > 0; k--) {
    tile_step(rows, width, type, acc, a, a_stride, b, next, copy);
    a++;
    b += b_stride;
    if (next) next += b_stride;
    if (copy) copy += copy_stride;
  }
}

/* Sums of products of integers, scaled, go to C. */
FF_INLINE void finish_pairs(const int rows, const int width, const int first,
                            const struct tile_args *t, vi (*acc)[WIDEST]) {
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) {
      float *c = t->c + r * t->c_stride + w * LANES;
      vf sum = __builtin_convertvector(acc[r][w], vf) * vf_splat(t->row_scale[r]);
      vf_store(c, first ? sum * vf_load(t->column_scale + w * LANES)
                        : vf_fma(vf_load(c), vf_splat(t->alpha[r]), sum));
    }
  }
}

/* The tile with pages of integers. */
FF_INLINE void tile_pairs(const int rows, const int width, const struct tile_args *t) {
  const isize a_stride = t->a_stride, b_stride = t->b_stride;
  const int32_mem *a = (const int32_mem *)t->a + t->begin;
  const char *b = t->b + t->begin * b_stride;
  const isize count = t->end - t->begin, ahead = t->next ? t->next - t->b : 0;
  const isize first = ahead ? count * t->part / t->parts : count;
  const isize last = ahead ? count * (t->part + 1) / t->parts : count;
  vi acc[TILE_ROWS][WIDEST];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) acc[r][w] = vi_splat(0);
  }
  for (isize k = 0; k < count; k++) {
    vi row[WIDEST];
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) row[w] = vi_load((const int32_t *)b + w * LANES);
    if (k >= first && k < last)
      for (isize i = 0; i < width * LANES * 4; i += 64) __builtin_prefetch(b + ahead + i, 0, 3);
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
      vi broadcast = vi_splat(a[r * a_stride]);
#pragma GCC unroll 4
      for (int w = 0; w < width; w++) acc[r][w] = dot_pairs(acc[r][w], broadcast, row[w]);
    }
    a++;
    b += b_stride;
  }
  if (t->column_scale)
    finish_pairs(rows, width, 1, t, acc);
  else
    finish_pairs(rows, width, 0, t, acc);
}

FF_INLINE void tile(const int rows, const int width, const int type, const struct tile_args *t) {
  if (type == FF_KV_I16) {
    tile_pairs(rows, width, t);
    return;
  }
  vf acc[TILE_ROWS][WIDEST];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int w = 0; w < width; w++)
      acc[r][w] = t->alpha ? vf_load(t->c + r * t->c_stride + w * LANES) * vf_splat(t->alpha[r])
                           : vf_splat(0.0f);
  }
  if (t->next || t->copy)
    tile_steps(rows, width, type, 1, t, acc);
  else
    tile_steps(rows, width, type, 0, t, acc);
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
#pragma GCC unroll 4
    for (int w = 0; w < width; w++) vf_store(t->c + r * t->c_stride + w * LANES, acc[r][w]);
  }
}

#define TILE_CASE(type, r, w) \
  case (r) * 8 + (w): \
    tile(r, w, type, t); \
    break;
#define TILE_CASES_FEW(type, w) TILE_CASE(type, 1, w) TILE_CASE(type, 2, w)
#if defined(__wasm__)
#define TILE_CASES(type, w) TILE_CASES_FEW(type, w) TILE_CASE(type, 3, w) TILE_CASE(type, 4, w)
#else
#define TILE_CASES(type, w) \
  TILE_CASES_FEW(type, w) \
  TILE_CASE(type, 3, w) TILE_CASE(type, 4, w) TILE_CASE(type, 5, w) TILE_CASE(type, 6, w)
#endif
#if defined(FF_AVX512) || defined(__aarch64__)
#define TILE_CASES_4(type) TILE_CASES(type, 4)
#else
#define TILE_CASES_4(type) TILE_CASES_FEW(type, 4)
#endif

/* The product over `vectors` SIMD vectors of columns: the widest tile at a time, then fewer. */
#define TILE_PRODUCT(name, type) \
  static __attribute__((noinline)) void name(int rows, int vectors, struct tile_args *t) { \
    const int most = rows <= FEW_ROWS ? WIDEST : TILE_WIDTH; \
    while (vectors > 0) { \
      int width = vectors >= most ? most : vectors >= 2 ? 2 : 1; \
      switch (rows * 8 + width) { \
        TILE_CASES(type, 1) \
        TILE_CASES(type, 2) \
        TILE_CASES_4(type) \
      } \
      vectors -= width; \
      t->c += width * LANES; \
      t->b += width * LANES * lane_bytes(type); \
      if (t->next) t->next += width * LANES * lane_bytes(type); \
      if (t->copy) t->copy += width * LANES; \
      if (t->column_scale) t->column_scale += width * LANES; \
    } \
  }

TILE_PRODUCT(product_f32, FF_KV_F32)
TILE_PRODUCT(product_f16, FF_KV_F16)
TILE_PRODUCT(product_bf16, FF_KV_BF16)
TILE_PRODUCT(product_i16, FF_KV_I16)

static inline void product(int type, int rows, int vectors, struct tile_args *t) {
  if (type == FF_KV_I16)
    product_i16(rows, vectors, t);
  else if (type == FF_KV_F16)
    product_f16(rows, vectors, t);
  else if (type == FF_KV_BF16)
    product_bf16(rows, vectors, t);
  else
    product_f32(rows, vectors, t);
}

#endif
