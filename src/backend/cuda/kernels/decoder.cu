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
 * where it is given, says which row of x each row of the output is of. Weights are here before x
 * is, and both stay in registers: what counts is the time of the loads that wait for others.
 */
extern "C" __global__ void ff_rms_norm(const float* x, const float* weight, const int* index,
                                       u16* out, int hidden, float epsilon) {
  constexpr int kHeld = 8; /* pairs of a thread; wider rows are read twice from there on */
  dependents_launch();
  const int half = hidden / 2, held = kHeld * blockDim.x;
  const float2* scale = reinterpret_cast<const float2*>(weight);
  float2 v[kHeld], w[kHeld];
#pragma unroll
  for (int k = 0; k < kHeld; k++) {
    const int i = threadIdx.x + k * blockDim.x;
    w[k] = i < half ? __ldg(scale + i) : make_float2(0.0f, 0.0f);
  }
  dependency_wait();
  const int row = index == nullptr ? static_cast<int>(blockIdx.x) : index[blockIdx.x];
  const float2* from = reinterpret_cast<const float2*>(x + static_cast<u64>(row) * hidden);
  float squares = 0.0f;
#pragma unroll
  for (int k = 0; k < kHeld; k++) {
    const int i = threadIdx.x + k * blockDim.x;
    v[k] = i < half ? from[i] : make_float2(0.0f, 0.0f);
  }
#pragma unroll
  for (int k = 0; k < kHeld; k++) squares += v[k].x * v[k].x + v[k].y * v[k].y;
  for (int i = threadIdx.x + held; i < half; i += blockDim.x)
    squares += from[i].x * from[i].x + from[i].y * from[i].y;
  const float factor = rsqrtf(block_sum(squares) / hidden + epsilon);
  u32* to = reinterpret_cast<u32*>(out + static_cast<u64>(blockIdx.x) * hidden);
#pragma unroll
  for (int k = 0; k < kHeld; k++) {
    const int i = threadIdx.x + k * blockDim.x;
    if (i < half) to[i] = store16_pair(v[k].x * factor * w[k].x, v[k].y * factor * w[k].y);
  }
  for (int i = threadIdx.x + held; i < half; i += blockDim.x)
    to[i] = store16_pair(from[i].x * factor * scale[i].x, from[i].y * factor * scale[i].y);
}

/* One warp a (row, head of q, k or v). */
extern "C" __global__ void ff_rotate_store(const __grid_constant__ Rotate a) {
  dependents_launch();
  const int total = a.heads + 2 * a.kv_heads;
  const int job = static_cast<int>(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (job < a.rows * total) rotate_head(a, job / total, job % total, threadIdx.x % 32);
}

/* silu(gate) * up of two columns. */
__device__ __forceinline__ u32 swiglu_pair(u32 gate, u32 up) {
  const float g0 = unpack16(static_cast<u16>(gate)), g1 = unpack16(static_cast<u16>(gate >> 16));
  const float u0 = unpack16(static_cast<u16>(up)), u1 = unpack16(static_cast<u16>(up >> 16));
  return store16_pair(silu(g0) * u0, silu(g1) * u1);
}

/*
 * out (rows, width) = silu(gate) * up of gate_up (rows, 2 * width). Eight columns a thread, or two
 * at a time where rows do not begin at 16 bytes.
 */
extern "C" __global__ void ff_swiglu(const u32* gate_up, u32* out, int width, int rows) {
  dependents_launch();
  dependency_wait();
  const int eighth = width / 8, half = width / 2, threads = gridDim.x * blockDim.x;
  const int first = blockIdx.x * blockDim.x + threadIdx.x;
  if (width % 8 == 0) {
    const int row = first / eighth, i = first % eighth;
    if (row >= rows) return;
    const uint4* from = reinterpret_cast<const uint4*>(gate_up + static_cast<u64>(row) * width) + i;
    const uint4 g = from[0], u = from[eighth];
    reinterpret_cast<uint4*>(out)[first] =
        make_uint4(swiglu_pair(g.x, u.x), swiglu_pair(g.y, u.y), swiglu_pair(g.z, u.z),
                   swiglu_pair(g.w, u.w));
    return;
  }
  for (int at = first; at < rows * half; at += threads) {
    const u32* from = gate_up + static_cast<u64>(at / half) * width + at % half;
    out[at] = swiglu_pair(from[0], from[half]);
  }
}
