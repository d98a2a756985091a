/*
 * What a decoder computes between its dense products: embedding rows, RMSNorm, rotation of q and
 * k with the write of K and V into their page slots, SwiGLU and what greedy decoding wants of the
 * logits. The residual stream and the results of products that are normed or rotated next are
 * 32-bit floats; inputs of products are 16-bit. Steps are padded to a bucket of rows: padding has
 * a valid token and no page slot.
 */
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

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int o = 16; o > 0; o /= 2) v += __shfl_xor_sync(~0u, v, o);
  return v;
}

/* The sum over the block, in every thread. */
__device__ __forceinline__ float block_sum(float v) {
  __shared__ float parts[32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
  __syncthreads();
  const float part = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : 0.0f;
  return warp_sum(part);
}

/* Weights of any storage type arrive as floats and are rounded here. */
extern "C" __global__ void ff_round(const float* from, u16* to, u64 count) {
  const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = store16(from[i]);
}

/* x (rows, hidden) = rows of table (vocab, hidden). One block a row. */
extern "C" __global__ void ff_embed(const u16* table, const int* tokens, float* x, int hidden) {
  const u16* from = table + static_cast<u64>(tokens[blockIdx.x]) * hidden;
  float* to = x + static_cast<u64>(blockIdx.x) * hidden;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = unpack16(from[i]);
}

/*
 * out (rows, hidden) = RMSNorm(x) * weight (Zhang and Sennrich, 2019). One block a row; `index`,
 * where it is given, says which row of x each row of the output is of.
 */
extern "C" __global__ void ff_rms_norm(const float* x, const float* weight, const int* index,
                                       u16* out, int hidden, float epsilon) {
  const int row = index == nullptr ? static_cast<int>(blockIdx.x) : index[blockIdx.x];
  const float2* from = reinterpret_cast<const float2*>(x + static_cast<u64>(row) * hidden);
  const float2* scale = reinterpret_cast<const float2*>(weight);
  float squares = 0.0f;
  for (int i = threadIdx.x; i < hidden / 2; i += blockDim.x) {
    const float2 v = from[i];
    squares += v.x * v.x + v.y * v.y;
  }
  const float factor = rsqrtf(block_sum(squares) / hidden + epsilon);
  u32* to = reinterpret_cast<u32*>(out + static_cast<u64>(blockIdx.x) * hidden);
  for (int i = threadIdx.x; i < hidden / 2; i += blockDim.x) {
    const float2 v = from[i], w = scale[i];
    to[i] = store16(v.x * factor * w.x) | static_cast<u32>(store16(v.y * factor * w.y)) << 16;
  }
}

/* Arguments of ff_rotate_store. Optional pointers are null where the model has no such weights. */
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

/* One warp a (row, head of q, k or v); a lane holds the rotary pairs lane, lane + 32, ... */
extern "C" __global__ void ff_rotate_store(const __grid_constant__ Rotate a) {
  constexpr int kHalf = kHeadDim / 2, kPairs = (kHalf + 31) / 32;
  const int lane = threadIdx.x % 32, total = a.heads + 2 * a.kv_heads;
  const u32 job = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int row = job / total, head = job % total;
  if (row >= a.rows) return;
  const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
  const int slot = a.slot[row];
  if (!is_q && slot < 0) return;

  const float* from = a.qkv + (static_cast<u64>(row) * total + head) * kHeadDim;
  const float* bias = a.bias == nullptr ? nullptr : a.bias + head * kHeadDim;
  float low[kPairs], high[kPairs], squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kPairs; k++) {
    const int i = lane + k * 32;
    low[k] = high[k] = 0.0f;
    if (i >= kHalf) continue;
    low[k] = from[i] + (bias == nullptr ? 0.0f : bias[i]);
    high[k] = from[i + kHalf] + (bias == nullptr ? 0.0f : bias[i + kHalf]);
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

/* out (rows, width) = silu(gate) * up of gate_up (rows, 2 * width). Two columns a thread. */
extern "C" __global__ void ff_swiglu(const u32* gate_up, u32* out, int width) {
  const int half = width / 2, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= half) return;
  const u32* row = gate_up + static_cast<u64>(blockIdx.y) * width;
  const u32 gate = row[i], up = row[i + half];
  u32 result = 0;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const float g = unpack16(static_cast<u16>(gate >> (16 * k)));
    const float u = unpack16(static_cast<u16>(up >> (16 * k)));
    result |= static_cast<u32>(store16(g / (1.0f + __expf(-g)) * u)) << (16 * k);
  }
  out[static_cast<u64>(blockIdx.y) * half + i] = result;
}

/* Keeps the larger of two logits, the lower index among equals. */
__device__ __forceinline__ void keep_larger(float& best, int& index, float value, int at) {
  if (value > best || (value == best && at < index)) {
    best = value;
    index = at;
  }
}

/* argmax and natural log of the sum of exponentials of each row of logits. One block a row. */
extern "C" __global__ void __launch_bounds__(1024, 1)
    ff_logit_stats(const float* logits, int* argmax, float* log_sum_exp, int vocab) {
  __shared__ float tops[32];
  __shared__ int indices[32];
  const float* row = logits + static_cast<u64>(blockIdx.x) * vocab;
  float top = -__int_as_float(0x7f800000);
  int index = 0x7fffffff;
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) keep_larger(top, index, row[i], i);
#pragma unroll
  for (int o = 16; o > 0; o /= 2)
    keep_larger(top, index, __shfl_xor_sync(~0u, top, o), __shfl_xor_sync(~0u, index, o));
  if (threadIdx.x % 32 == 0) {
    tops[threadIdx.x / 32] = top;
    indices[threadIdx.x / 32] = index;
  }
  __syncthreads();
  top = tops[0];
  index = indices[0];
  for (int warp = 1; warp < blockDim.x / 32; warp++)
    keep_larger(top, index, tops[warp], indices[warp]);
  float sum = 0.0f;
  for (int i = threadIdx.x; i < vocab; i += blockDim.x) sum += __expf(row[i] - top);
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    argmax[blockIdx.x] = index < vocab ? index : 0;
    log_sum_exp[blockIdx.x] = top + logf(sum);
  }
}
