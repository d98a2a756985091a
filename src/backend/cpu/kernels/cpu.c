// What this processor can do, so that one of several prebuilt libraries can be chosen. Plain
// instructions only: the file must run on the oldest processor that any library is built for.

#include "simd.h"

// Bits of the result; prebuilt.ts knows the same numbers.
enum { HAS_AVX2 = 1, HAS_AVX_VNNI = 2, HAS_AVX512_VNNI = 4 };

#if defined(__x86_64__)
static void cpuid(unsigned leaf, unsigned sub, unsigned out[4]) {
  __asm__ volatile("cpuid"
                   : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
                   : "a"(leaf), "c"(sub));
}

// The registers that the operating system saves (XCR0).
static unsigned saved_registers(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

FF_EXPORT int ff_cpu_features(void) {
  unsigned r[4];
  cpuid(0, 0, r);
  if (r[0] < 7) return 0;
  cpuid(1, 0, r);
  const int osxsave = r[2] >> 27 & 1, fma = r[2] >> 12 & 1, f16c = r[2] >> 29 & 1;
  if (!osxsave) return 0;
  const unsigned saved = saved_registers();
  const int ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
  cpuid(7, 0, r);
  const unsigned b = r[1], c = r[2], leaves = r[0];
  const int avx2 = ymm && fma && f16c && (b >> 5 & 1) && (b >> 8 & 1);
  // AVX-512 F, DQ, BW, VL as compilers expect them together, then VNNI.
  const int avx512 = zmm && (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);
  const int avx512_vnni = avx512 && (c >> 11 & 1);
  int avx_vnni = 0;
  if (leaves >= 1) {
    cpuid(7, 1, r);
    avx_vnni = avx2 && (r[0] >> 4 & 1);
  }
  return (avx2 ? HAS_AVX2 : 0) | (avx_vnni ? HAS_AVX_VNNI : 0) |
         (avx2 && avx512_vnni ? HAS_AVX512_VNNI : 0);
}
#else
FF_EXPORT int ff_cpu_features(void) { return 0; }
#endif

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
enum { HUGE_PAGES = 14, SMALL_PAGE = 4096 };

// The system call itself, because there is no library.
static void advise(uintptr_t begin, uintptr_t bytes) {
#if defined(__x86_64__)
  uintptr_t result = 28;
  __asm__ volatile("syscall"
                   : "+a"(result)
                   : "D"(begin), "S"(bytes), "d"((uintptr_t)HUGE_PAGES)
                   : "rcx", "r11", "memory");
#else
  register uintptr_t number __asm__("x8") = 233;
  register uintptr_t x0 __asm__("x0") = begin;
  register uintptr_t x1 __asm__("x1") = bytes;
  register uintptr_t x2 __asm__("x2") = HUGE_PAGES;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(number), "r"(x1), "r"(x2) : "memory");
#endif
}

// Asks for pages of 2 MB, which spare most misses of the address cache; the system may refuse.
FF_EXPORT void ff_use_huge_pages(uintptr_t begin, uintptr_t bytes) {
  uintptr_t first = (begin + SMALL_PAGE - 1) / SMALL_PAGE * SMALL_PAGE;
  uintptr_t end = (begin + bytes) / SMALL_PAGE * SMALL_PAGE;
  if (first < end) advise(first, end - first);
}
#else
FF_EXPORT void ff_use_huge_pages(uintptr_t begin, uintptr_t bytes) {
  (void)begin;
  (void)bytes;
}
#endif
