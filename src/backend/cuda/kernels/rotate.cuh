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
 * One head of one row by one warp; a lane holds the rotary pairs lane, lane + 32, ... `value(i)`
 * is the product's element i of the row.
 */
template <class Value>
__device__ __forceinline__ void rotate_head(const Rotate& a, int row, int head, int lane,
                                            const Value& value) {
  constexpr int kHalf = kHeadDim / 2, kPairs = (kHalf + 31) / 32;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
  const int slot = a.slot[row];
  if (!is_q && slot < 0) return;

  const int from = head * kHeadDim;
  float low[kPairs], high[kPairs], squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32;
    low[k] = high[k] = 0.0f;
    if (i >= kHalf) continue;
    low[k] = value(from + i) + (a.bias == nullptr ? 0.0f : a.bias[from + i]);
    high[k] = value(from + i + kHalf) + (a.bias == nullptr ? 0.0f : a.bias[from + i + kHalf]);
    squares += low[k] * low[k] + high[k] * high[k];
  }
  const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
  const float factor =
      norm == nullptr ? 1.0f : rsqrtf(warp_sum(squares) / kHeadDim + a.epsilon);
  const u64 angles = static_cast<u64>(a.position[row]) * kHalf;

  u16* q = a.q + (static_cast<u64>(row) * a.heads + head) * kHeadDim;
  const int kv_head = head - a.heads - (is_v ? a.kv_heads : 0);
  u16* kv = is_q ? nullptr
                 : a.kv + page_element(slot, kv_head, a.kv_heads) + (is_v ? kHeadDim * 8 : 0);
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32;
    if (i >= kHalf) continue;
    float x = low[k], y = high[k];
    if (norm != nullptr) {
      x *= factor * norm[i];
      y *= factor * norm[i + kHalf];
    }
    if (!is_v) {
      const float c = a.cosine[angles + i], s = a.sine[angles + i];
      const float rotated = x * c - y * s;
      y = y * c + x * s;
      x = rotated;
    }
    if (is_q) {
      q[i] = store16(x);
      q[i + kHalf] = store16(y);
    } else {
      const int j = i + kHalf;
      kv[i / 8 * 64 + i % 8] = store16(x);
      kv[j / 8 * 64 + j % 8] = store16(y);
    }
  }
}
