/*
 * Between the QKV product and attention: the optional RMS norm of each q and k head (Qwen3), RoPE,
 * and K and V into their page slots.
 */
#include "attention-image.h"

enum { HEAD_DIM_MAX = 512 };

/* The type of KV pages that is fastest here. */
FF_EXPORT int32_t ff_kv_type(void) {
#if defined(FF_FAST_PAIRS)
  return FF_KV_I16;
#else
  return FF_KV_F16;
#endif
}

/* x = x / rms(x) * weight. */
static void norm_head(float *x, isize head_dim, const float *weight, float epsilon) {
  vf squares = vf_splat(0.0f);
  for (isize i = 0; i < head_dim; i += LANES)
    squares = vf_fma(vf_load(x + i), vf_load(x + i), squares);
  float mean = vf_sum(squares) / (float)head_dim;
  vf scale = vf_splat(1.0f / __builtin_sqrtf(mean + epsilon));
  for (isize i = 0; i < head_dim; i += LANES)
    vf_store(x + i, vf_load(x + i) * scale * vf_load(weight + i));
}

/* Turns the pairs (i, i + headDim / 2) by the position's angles (RoFormer, in GPT-NeoX order). */
static void rotate_head(float *x, isize half, const float *cosine, const float *sine) {
  isize i = 0;
  for (; i + LANES <= half; i += LANES) {
    vf a = vf_load(x + i), b = vf_load(x + half + i);
    vf c = vf_load(cosine + i), s = vf_load(sine + i);
    vf_store(x + i, a * c - b * s);
    vf_store(x + half + i, b * c + a * s);
  }
  for (; i < half; i++) {
    float a = x[i], b = x[half + i];
    x[i] = a * cosine[i] - b * sine[i];
    x[half + i] = b * cosine[i] + a * sine[i];
  }
}

/* Converts a vector to one of the two 16-bit types. */
FF_INLINE void store_half(int type, uint16_t *to, vf x) {
  if (type == FF_KV_F16)
    vf_store_f16(to, x);
  else
    vf_store_bf16(to, x);
}

/* K into column `slot` of the transposed page (headDim x 64), or of pairs (headDim / 2 x 64). */
static void store_key(int type, char *page, isize slot, const float *key, isize head_dim) {
  if (type == FF_KV_F32) {
    for (isize i = 0; i < head_dim; i++) ((float *)page)[i * PAGE + slot] = key[i];
    return;
  }
  uint16_t halves[HEAD_DIM_MAX];
  if (type == FF_KV_I16) {
    float scale = quantize_key(key, head_dim, halves);
    for (isize i = 0; i < head_dim; i += 2)
      ((int32_t *)page)[i / 2 * PAGE + slot] = *(const int32_mem *)(halves + i);
    ((float *)(page + kv_bytes(type, head_dim * PAGE)))[slot] = scale;
    return;
  }
  for (isize i = 0; i < head_dim; i += LANES) store_half(type, halves + i, vf_load(key + i));
  for (isize i = 0; i < head_dim; i++) ((uint16_t *)page)[i * PAGE + slot] = halves[i];
}

/* V into row `slot` of the page (64 x headDim), or into its pair's row (32 x headDim x 2). */
static void store_value(int type, char *page, isize slot, const float *value, isize head_dim) {
  if (type == FF_KV_I16) {
    uint16_t integers[HEAD_DIM_MAX];
    float scale = quantize_value(value, head_dim, integers);
    uint16_t *to = (uint16_t *)page + slot / 2 * head_dim * 2 + slot % 2;
    for (isize i = 0; i < head_dim; i++) to[2 * i] = integers[i];
    ((float *)(page + kv_bytes(type, head_dim * PAGE)))[slot] = scale;
    return;
  }
  char *to = page + kv_bytes(type, slot * head_dim);
  for (isize i = 0; i < head_dim; i += LANES) {
    if (type == FF_KV_F32)
      vf_store((float *)to + i, vf_load(value + i));
    else
      store_half(type, (uint16_t *)to + i, vf_load(value + i));
  }
}

/*
 * Does units [begin, end); unit = row * KV heads + KV head stands for that head's K and V and its
 * group's queries, which are changed in place. The norm weights (headDim) may be null.
 */
FF_EXPORT void ff_rotate_and_store(const struct attention_image *image, int32_t layer,
                                   int32_t begin, int32_t end, const float *query_norm,
                                   const float *key_norm, float epsilon) {
  isize kv_heads = (isize)image->kv_heads, group = (isize)image->group;
  isize head_dim = (isize)image->head_dim, half = head_dim / 2;
  int type = (int)image->kv_type;
  for (isize unit = begin; unit < end; unit++) {
    isize row = unit / kv_heads, head = unit % kv_heads;
    isize position = INTS(image, row_position)[row];
    const float *cosine = FLOATS(image, cosine) + position * half;
    const float *sine = FLOATS(image, sine) + position * half;
    isize from = row * (isize)image->input_stride;

    float *query = FLOATS(image, query) + from + head * group * head_dim;
    for (isize g = 0; g < group; g++, query += head_dim) {
      if (query_norm) norm_head(query, head_dim, query_norm, epsilon);
      rotate_head(query, half, cosine, sine);
    }

    isize slot = INTS(image, write_slots)[row];
    if (slot < 0) continue;
    float *key = FLOATS(image, key) + from + head * head_dim;
    if (key_norm) norm_head(key, head_dim, key_norm, epsilon);
    rotate_head(key, half, cosine, sine);
    const float *value = FLOATS(image, value) + from + head * head_dim;
    isize base = layer * (isize)image->layer_stride + head * (isize)image->head_stride +
                 slot / PAGE * (isize)image->page_stride;
    store_key(type, (char *)(uintptr_t)image->keys + base, slot % PAGE, key, head_dim);
    store_value(type, (char *)(uintptr_t)image->values + base, slot % PAGE, value, head_dim);
  }
}
