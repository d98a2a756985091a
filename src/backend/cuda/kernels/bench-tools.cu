/*
 * Helpers of the attention benchmark and of the tests on a device: random numbers, a float64
 * reference, a flush of the L2 cache and a kernel that only reads.
 */
#include "plan-image.cuh"

__device__ u32 mix(u32 z) {
  z = (z ^ (z >> 16)) * 0x21f0aaadu;
  z = (z ^ (z >> 15)) * 0x735a2d97u;
  return z ^ (z >> 15);
}

/* Fills with numbers of mean 0 and variance 1 (a sum of four uniform ones). */
extern "C" __global__ void ff_random(u16* to, u64 count, u32 seed) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const u32 a = mix(static_cast<u32>(i) * 2654435761u + seed + static_cast<u32>(i >> 32));
    const u32 b = mix(a + 0x9e3779b9u);
    const float sum = (a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16);
    to[i] = pack16_one((sum / 65536.0f - 2.0f) * 1.7320508f);
  }
}

/* Reads everything once, 16 bytes a load, eight loads in flight a thread. */
extern "C" __global__ void ff_read(const uint4* from, u64 count, u32* sink) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  u32 sum = 0;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step * 8) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; k++)
      v[k] = i + k * step < count ? __ldg(from + i + k * step) : make_uint4(0, 0, 0, 0);
#pragma unroll
    for (int k = 0; k < 8; k++) sum += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  if (sum == 0x12345678u) *sink = sum;
}

extern "C" __global__ void ff_empty(int) {}

/* K (part 0) or V (part 1) of one token at a dimension: see the layout in docs/kernel.md. */
__device__ double kv_element(const u16* kv, u64 unit, int token, int part, int d) {
  constexpr int kHeadDim = FF_HEAD_DIM;
  const u64 group = unit * 2 + (token >> 3);
  return unpack16(kv[group * kHeadDim * 16 + part * kHeadDim * 8 + (d >> 3) * 64 +
                     (token & 7) * 8 + (d & 7)]);
}

/*
 * One block a (sample, query head): out (samples, query heads, head_dim) in float64. `span` holds
 * (unit, first token, one past the last token, unused) quadruples of the sample's path from
 * span_begin[sample] on; scratch holds span_tokens doubles a block.
 */
extern "C" __global__ void ff_reference(const u16* kv, const u16* q, const int* sample_row,
                                        const int4* span, const int* span_begin, double* out,
                                        double* scratch, int scratch_tokens, int kv_heads,
                                        int q_stride, double scale) {
  constexpr int kUnits = FF_PAGE_TOKENS / kUnitTokens;
  const int sample = blockIdx.x, head = blockIdx.y, kv_head = head / FF_GROUP;
  const u16* query = q + static_cast<u64>(sample_row[sample]) * q_stride + head * FF_HEAD_DIM;
  double* score =
      scratch + (static_cast<u64>(sample) * gridDim.y + head) * static_cast<u64>(scratch_tokens);
  const int first = span_begin[sample], last = span_begin[sample + 1];
  __shared__ double reduce[256];
  double top = -1e300;
  for (int s = first * kUnitTokens + threadIdx.x; s < last * kUnitTokens; s += blockDim.x) {
    const int4 part = span[s / kUnitTokens];
    const int token = s % kUnitTokens;
    double dot = -1e300;
    if (token >= part.y && token < part.z) {
      const u64 unit =
          (static_cast<u64>(part.x / kUnits) * kv_heads + kv_head) * kUnits + part.x % kUnits;
      dot = 0.0;
      for (int d = 0; d < FF_HEAD_DIM; d++)
        dot += static_cast<double>(unpack16(query[d])) * kv_element(kv, unit, token, 0, d);
      dot *= scale;
    }
    score[s - first * kUnitTokens] = dot;
    top = dot > top ? dot : top;
  }
  reduce[threadIdx.x] = top;
  __syncthreads();
  for (int n = blockDim.x / 2; n > 0; n /= 2) {
    if (threadIdx.x < n && reduce[threadIdx.x + n] > reduce[threadIdx.x])
      reduce[threadIdx.x] = reduce[threadIdx.x + n];
    __syncthreads();
  }
  top = reduce[0];
  __syncthreads();
  double sum = 0.0;
  for (int s = threadIdx.x; s < (last - first) * kUnitTokens; s += blockDim.x) {
    score[s] = exp(score[s] - top);
    sum += score[s];
  }
  reduce[threadIdx.x] = sum;
  __syncthreads();
  for (int n = blockDim.x / 2; n > 0; n /= 2) {
    if (threadIdx.x < n) reduce[threadIdx.x] += reduce[threadIdx.x + n];
    __syncthreads();
  }
  sum = reduce[0];
  for (int d = threadIdx.x; d < FF_HEAD_DIM; d += blockDim.x) {
    double o = 0.0;
    for (int s = 0; s < (last - first) * kUnitTokens; s++) {
      const int4 part = span[first + s / kUnitTokens];
      const u64 unit =
          (static_cast<u64>(part.x / kUnits) * kv_heads + kv_head) * kUnits + part.x % kUnits;
      if (score[s] > 0.0) o += score[s] * kv_element(kv, unit, s % kUnitTokens, 1, d);
    }
    out[(static_cast<u64>(sample) * gridDim.y + head) * FF_HEAD_DIM + d] = o / sum;
  }
}
