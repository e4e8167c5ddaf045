// Memory for what the kernels build while they run.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "vector.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Asks for huge pages under memory that is about to be written: large tensors are mostly fresh, and
// a fault for every small page costs as much as the arithmetic.
inline void prefer_huge_pages(float* data, int64_t count) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(data + count) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data;
  (void)count;
#endif
}

// Memory that is not initialised, in huge pages where there are any.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  template <class T>
  T* reserve(int64_t count) {
    int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > size_) {
      std::free(data_);
      size_ = ceil_div(bytes, page) * page;
      data_ = std::aligned_alloc(bytes < page ? 4096 : page, size_);
      if (!data_) {
        size_ = 0;
        return nullptr;
      }
#if defined(MADV_HUGEPAGE)
      madvise(data_, size_, MADV_HUGEPAGE);
#endif
    }
    return static_cast<T*>(data_);
  }

 private:
  static constexpr int64_t page = int64_t{1} << 21;
  void* data_ = nullptr;
  int64_t size_ = 0;
};

// Rounds a number of floats up to whole pages.
inline int64_t whole_pages(int64_t floats) { return ceil_div(floats, 1024) * 1024; }

// Memory of the calling thread, kept from call to call.
struct Memory {
  Buffer starts, distance, values, table, threads, planes, taps, gradients, spots, input_panels,
      output_panels;
};

inline Memory& memory() {
  static thread_local Memory memory;
  return memory;
}

template <class T>
inline T* reserve(Buffer& buffer, int64_t count) {
  T* data = buffer.reserve<T>(maximum<int64_t>(count, 1));
  if (!data) throw std::bad_alloc();
  return data;
}

}  // namespace
