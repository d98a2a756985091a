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

#if __CUDA_ARCH__ >= 890
/* The same as 8-bit floats (e4m3), two a thread and round. */
extern "C" __global__ void ff_random8(u16* to, u64 count, u32 seed) {
  const u64 step = static_cast<u64>(gridDim.x) * blockDim.x;
  for (u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const u32 a = mix(static_cast<u32>(i) * 2654435761u + seed + static_cast<u32>(i >> 32));
    const u32 b = mix(a + 0x9e3779b9u), c = mix(b + 0x9e3779b9u);
    const float x = ((a & 0xffff) + (a >> 16) + (b & 0xffff) + (b >> 16)) / 65536.0f - 2.0f;
    const float y = ((c & 0xffff) + (c >> 16) + (a & 0xffff) + (b >> 16)) / 65536.0f - 2.0f;
    u16 pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
        : "=h"(pair)
        : "f"(y * 1.7320508f), "f"(x * 1.7320508f));
    to[i] = pair;
  }
}
#endif

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
#if FF_KV8
  const u16* pair = kv + group * kHeadDim * 8 + part * kHeadDim * 4 + (d >> 4) * 64 +
                    (token & 7) * 8 + (d & 15) / 2;
  u32 halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(*pair));
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(static_cast<u16>(d & 1 ? halves >> 16 : halves)));
  return f;
#else
  return unpack16(kv[group * kHeadDim * 16 + part * kHeadDim * 8 + (d >> 3) * 64 +
                     (token & 7) * 8 + (d & 7)]);
#endif
}

/* The step's forest and what is to be compared, as attention-reference.ts lays it out. */
struct Reference {
  const u16* kv;
  const u16* q;
  const u16* out;      /* what is compared; strides of q and out are in elements */
  const int* node;     /* per node: parent, start, length, first slot, first page entry */
  const int* pages;    /* page ids */
  const int* sample;   /* per sample: row, its position, the deepest node of its path */
  double* weight;      /* (samples, query heads, room) */
  int* slot;           /* (samples, query heads, room) */
  double* exact;       /* (samples, query heads, head_dim) */
  double* error;       /* (samples, query heads, 3): sums of (out - exact)^2, exact^2; largest */
  const float* kv_scale; /* (kv_heads, 2) with 8-bit KV */
  double scale;
  double softcap;      /* 0 = none */
  int window;          /* 0 = none */
  int room;            /* positions of the longest path */
  int kv_heads;
  int q_stride;
  int out_stride;
  int unused;
};

__device__ double block_sum(double* shared, double value, bool largest) {
  __syncthreads();
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int n = blockDim.x / 2; n > 0; n /= 2) {
    if (threadIdx.x < n) {
      const double a = shared[threadIdx.x], b = shared[threadIdx.x + n];
      shared[threadIdx.x] = !largest ? a + b : a > b ? a : b;
    }
    __syncthreads();
  }
  return shared[0];
}

/* Attention of one sample and query head, in a block of 256 threads, straight from its formula. */
extern "C" __global__ void ff_reference(const __grid_constant__ Reference a) {
  constexpr int kUnits = FF_PAGE_TOKENS / kUnitTokens;
  __shared__ double shared[256];
  const int sample = blockIdx.x, head = blockIdx.y, heads = gridDim.y;
  const int row = a.sample[sample * 3], position = a.sample[sample * 3 + 1];
  const int kv_head = head / FF_GROUP;
  const u64 place = static_cast<u64>(sample) * heads + head;
  const u16* query = a.q + static_cast<u64>(row) * a.q_stride + head * FF_HEAD_DIM;
  double* weight = a.weight + place * a.room;
  int* slot = a.slot + place * a.room;
  const int from = a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  double top = -1e300;
  for (int node = a.sample[sample * 3 + 2]; node >= 0; node = a.node[node * 5]) {
    const int start = a.node[node * 5 + 1], first = a.node[node * 5 + 3];
    const int* pages = a.pages + a.node[node * 5 + 4];
    for (int t = threadIdx.x; t < a.node[node * 5 + 2]; t += blockDim.x) {
      const int at = first + t;
      if (start + t < from || start + t > position) continue;
      const int place_in_kv = pages[at / FF_PAGE_TOKENS] * FF_PAGE_TOKENS + at % FF_PAGE_TOKENS;
      const u64 unit = (static_cast<u64>(place_in_kv / FF_PAGE_TOKENS) * a.kv_heads + kv_head) *
                           kUnits + place_in_kv % FF_PAGE_TOKENS / kUnitTokens;
      double dot = 0.0;
      for (int d = 0; d < FF_HEAD_DIM; d++)
        dot += static_cast<double>(unpack16(query[d])) *
               kv_element(a.kv, unit, at % kUnitTokens, 0, d);
      dot *= a.scale * (FF_KV8 ? a.kv_scale[kv_head * 2] : 1.0f);
      if (a.softcap > 0.0) dot = a.softcap * tanh(dot / a.softcap);
      weight[start + t] = dot;
      slot[start + t] = place_in_kv;
      top = dot > top ? dot : top;
    }
  }
  top = block_sum(shared, top, true);
  double sum = 0.0;
  for (int p = from + threadIdx.x; p <= position; p += blockDim.x) {
    weight[p] = exp(weight[p] - top);
    sum += weight[p];
  }
  sum = block_sum(shared, sum, false);
  double wrong = 0.0, norm = 0.0, largest = 0.0;
  for (int d = threadIdx.x; d < FF_HEAD_DIM; d += blockDim.x) {
    double o = 0.0;
    for (int p = from; p <= position; p++) {
      const int page = slot[p] / FF_PAGE_TOKENS, token = slot[p] % FF_PAGE_TOKENS;
      const u64 unit = (static_cast<u64>(page) * a.kv_heads + kv_head) * kUnits +
                       token / kUnitTokens;
      o += weight[p] * kv_element(a.kv, unit, token % kUnitTokens, 1, d);
    }
    o *= (FF_KV8 ? a.kv_scale[kv_head * 2 + 1] : 1.0f) / sum;
    a.exact[place * FF_HEAD_DIM + d] = o;
    const double difference =
        unpack16(a.out[static_cast<u64>(row) * a.out_stride + head * FF_HEAD_DIM + d]) - o;
    wrong += difference * difference;
    norm += o * o;
    const double size = fabs(difference);
    largest = !(size <= largest) ? size : largest;
  }
  wrong = block_sum(shared, wrong, false);
  norm = block_sum(shared, norm, false);
  largest = block_sum(shared, largest, true);
  if (threadIdx.x != 0) return;
  a.error[place * 3] = wrong;
  a.error[place * 3 + 1] = norm;
  a.error[place * 3 + 2] = largest;
}
