/*
 * What a decoder computes between its dense products: embedding rows, RMSNorm, rotation of q and
 * k with the write of K and V into their page slots, SwiGLU and what greedy decoding wants of the
 * logits. The residual stream and the results of products that are normed or rotated next are
 * 32-bit floats; inputs of products are 16-bit. Steps are padded to a bucket of rows: padding has
 * a valid token and no page slot.
 */
#include "move-kv.cuh"
#include "rotate.cuh"

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
  dependents_launch();
  dependency_wait();
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
  dependents_launch();
  dependency_wait();
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
    to[i] = store16_pair(v.x * factor * w.x, v.y * factor * w.y);
  }
}

/* One warp a (row, head of q, k or v). */
extern "C" __global__ void ff_rotate_store(const __grid_constant__ Rotate a) {
  dependents_launch();
  dependency_wait();
  const int total = a.heads + 2 * a.kv_heads;
  const int job = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  const int row = job / total;
  if (row >= a.rows) return;
  const float* from = a.qkv + static_cast<u64>(row) * total * kHeadDim;
  rotate_head(a, row, job % total, threadIdx.x % 32, [=](int i) { return from[i]; });
}

/* out (rows, width) = silu(gate) * up of gate_up (rows, 2 * width). Two columns a thread. */
extern "C" __global__ void ff_swiglu(const u32* gate_up, u32* out, int width) {
  dependents_launch();
  dependency_wait();
  const int half = width / 2, i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= half) return;
  const u32* row = gate_up + static_cast<u64>(blockIdx.y) * width;
  const u32 gate = row[i], up = row[i + half];
  u32 result = 0;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const float g = unpack16(static_cast<u16>(gate >> (16 * k)));
    const float u = unpack16(static_cast<u16>(up >> (16 * k)));
    result |= static_cast<u32>(store16(silu(g) * u)) << (16 * k);
  }
  out[static_cast<u64>(blockIdx.y) * half + i] = result;
}
