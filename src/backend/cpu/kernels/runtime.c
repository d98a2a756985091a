/*
 * The functions that compilers call on their own account; there is no library to bring them.
 */
#include <stddef.h>

#if defined(__wasm__) || defined(_WIN32)
#define HIDDEN
#else
#define HIDDEN __attribute__((visibility("hidden")))
#endif

/* Keeps a loop from being recognised as a call of the very function it is in. */
#define OPAQUE __asm__ volatile("" ::: "memory")

HIDDEN void *memcpy(void *to, const void *from, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    ((char *)to)[i] = ((const char *)from)[i];
    OPAQUE;
  }
  return to;
}

HIDDEN void *memmove(void *to, const void *from, size_t bytes) {
  if ((size_t)to - (size_t)from >= bytes) return memcpy(to, from, bytes);
  for (size_t i = bytes; i > 0; i--) {
    ((char *)to)[i - 1] = ((const char *)from)[i - 1];
    OPAQUE;
  }
  return to;
}

HIDDEN void *memset(void *to, int value, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) {
    ((char *)to)[i] = (char)value;
    OPAQUE;
  }
  return to;
}
