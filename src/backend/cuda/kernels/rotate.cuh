/*
 * What a decoder does to one head of q, k or v: bias, the optional norm of q and k, rotation, and
 * the write of K and V into their page slots.
 */
#pragma once
#include "common.cuh"

constexpr int kHeadDim = FF_HEAD_DIM;
constexpr int kPageTokens = FF_PAGE_TOKENS;
constexpr int kUnit = 16; /* tokens that lie together in a page */
constexpr float kHalfMax = 65504.0f;

/* A value as it is stored; half precision saturates rather than becoming infinite. */
__device__ __forceinline__ u16 store16(float v) {
#if !FF_BF16
  v = fminf(fmaxf(v, -kHalfMax), kHalfMax);
#endif
  return pack16_one(v);
}
__device__ __forceinline__ u32 store16_pair(float lo, float hi) {
  return store16(lo) | static_cast<u32>(store16(hi)) << 16;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

__device__ __forceinline__ float silu(float v) { return v / (1.0f + __expf(-v)); }

/* Optional pointers are null where the model has no such weights. 96 bytes. */
struct Rotate {
  const float* qkv;    /* (rows, (heads + 2 kv_heads) * head_dim): q, k, v side by side */
  const float* bias;   /* optional, as a row of qkv */
  const float* q_norm; /* optional (head_dim), k_norm as well */
  const float* k_norm;
  const float* cosine; /* (positions, head_dim / 2), sine as well */
  const float* sine;
  const int* position; /* (rows) */
  const int* slot;     /* (rows) page * page size + slot, or -1: K and V are written nowhere */
  u16* q;              /* (rows, heads * head_dim) */
  u16* kv;             /* this layer's pages */
  int rows;
  int heads;
  int kv_heads;
  float epsilon;
};

/*
 * Element (token slot, dimension 0) of a KV head's K: 8 tokens lie together, their K before their
 * V, each as blocks of 8 dimensions x 8 tokens.
 */
__device__ __forceinline__ u64 page_element(int slot, int head, int kv_heads) {
  constexpr int kUnits = kPageTokens / kUnit;
  const int page = slot / kPageTokens, within = slot % kPageTokens;
  const u64 unit = (static_cast<u64>(page) * kv_heads + head) * kUnits + within / kUnit;
  return (unit * 2 + (within / 8) % 2) * (kHeadDim * 16) + within % 8 * 8;
}

/*
 * One head of one row by one warp; a lane holds the rotary pairs lane, lane + 32, ... All that
 * does not come from the product is read before the product has ended: positions and slots are
 * those of the whole step.
 */
__device__ __forceinline__ void rotate_head(const Rotate& a, int row, int head, int lane) {
  constexpr int kHalf = kHeadDim / 2, kPairs = (kHalf + 31) / 32;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
  const int slot = a.slot[row];
  if (!is_q && slot < 0) return;

  const int from = head * kHeadDim;
  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  const u64 angles = static_cast<u64>(a.position[row]) * kHalf;
  const auto weight = [](const float* p, int i, float otherwise) {
    return p == nullptr ? otherwise : __ldg(p + i);
  };
  float low[kPairs], high[kPairs], norm_low[kPairs], norm_high[kPairs], c[kPairs], s[kPairs];
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32;
    if (i >= kHalf) continue;
    low[k] = weight(a.bias, from + i, 0.0f);
    high[k] = weight(a.bias, from + i + kHalf, 0.0f);
    norm_low[k] = weight(norm, i, 1.0f);
    norm_high[k] = weight(norm, i + kHalf, 1.0f);
    c[k] = is_v ? 1.0f : __ldg(a.cosine + angles + i);
    s[k] = is_v ? 0.0f : __ldg(a.sine + angles + i);
  }
  dependency_wait();

  const float* value = a.qkv + static_cast<u64>(row) * (a.heads + 2 * a.kv_heads) * kHeadDim + from;
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32;
    low[k] = i < kHalf ? low[k] + value[i] : 0.0f;
    high[k] = i < kHalf ? high[k] + value[i + kHalf] : 0.0f;
    squares += low[k] * low[k] + high[k] * high[k];
  }
  const float factor =
      norm == nullptr ? 1.0f : rsqrtf(warp_sum(squares) / kHeadDim + a.epsilon);

  u16* q = a.q + (static_cast<u64>(row) * a.heads + head) * kHeadDim;
  const int kv_head = head - a.heads - (is_v ? a.kv_heads : 0);
  u16* kv = is_q ? nullptr
                 : a.kv + page_element(slot, kv_head, a.kv_heads) + (is_v ? kHeadDim * 8 : 0);
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32, j = i + kHalf;
    if (i >= kHalf) continue;
    const float x = low[k] * (factor * norm_low[k]), y = high[k] * (factor * norm_high[k]);
    const u16 first = store16(x * c[k] - y * s[k]), second = store16(y * c[k] + x * s[k]);
    if (is_q) {
      q[i] = first;
      q[j] = second;
    } else {
      kv[i / 8 * 64 + i % 8] = first;
      kv[j / 8 * 64 + j % 8] = second;
    }
  }
}
