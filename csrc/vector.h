// Vectors of LANES floats, written with the compiler's own vector types so that one source serves
// all instruction sets. Define LANES before including this file.
//
// Everything is in an unnamed namespace: the files that include this are compiled with different
// flags, and the linker must not choose one's functions for another.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));

// What is packed and multiplied: float, or its upper half, rounded to nearest.
struct Bfloat16 {
  uint16_t bits;

  Bfloat16() = default;
  explicit Bfloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    const bool nan = (word & 0x7fffffff) > 0x7f800000;
    bits =
        static_cast<uint16_t>(nan ? word >> 16 | 0x40 : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = uint32_t{bits} << 16;
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  }
};

// Numbers in the place of a float: as many does an instruction multiply and sum, and as many
// vectors of sums belong to a vector of numbers.
template <class Number>
constexpr int per_float = sizeof(float) / sizeof(Number);

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }

constexpr int64_t cached_bytes = 32 << 20;  // what the third level of the cache may keep

// Stores past the caches, if the machine can; worth while where nobody will read it for long.
inline void store_past_caches(float* p, Vec v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0) return __builtin_ia32_movntps512(p, v);
#endif
  store(p, v);
}

inline Vec broadcast(float x) { return x - Vec{}; }

// sum + a * b
inline Vec add_product(Vec sum, Vec a, Vec b) { return sum + a * b; }

#if defined(__AVX512BF16__)
typedef __m512i Halves;  // 32 numbers

inline Halves load(const Bfloat16* p) { return _mm512_loadu_si512(p); }

// Rounds, and stores half a vector of numbers.
inline void store(Bfloat16* p, Vec v) {
  const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof(half));
}

// Adds to each sum the products of two neighbours.
inline Vec add_product(Vec sum, Halves a, Halves b) {
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// Keeps a vector in a register: without this, the compiler repeats a load in every use.
#if defined(__AVX__)
#define PIN(v) asm("" : "+v"(v))
#elif defined(__aarch64__)
#define PIN(v) asm("" : "+w"(v))
#else
#define PIN(v) (void)(v)
#endif

// Makes the compiler add to a pointer step by step: it would hold all the sums, in more registers
// than there are.
#define STEP(pointer) asm("" : "+r"(pointer))

template <class T>
inline T minimum(T a, T b) {
  return a < b ? a : b;
}
template <class T>
inline T maximum(T a, T b) {
  return a < b ? b : a;
}
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Four ways to mix two vectors. Lanes without the bit `step` come from the first, the others from
// the second: the same lane, or the one that differs in this bit.
template <int step, int... lane>
inline Vec lower(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane & step ? LANES + (lane ^ step) : lane)...);
}

template <int step, int... lane>
inline Vec upper(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane & step ? LANES + lane : lane ^ step)...);
}

template <int step, int... lane>
inline Vec same(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane & step ? LANES + lane : lane)...);
}

template <int step, int... lane>
inline Vec crossed(Vec a, Vec b, std::integer_sequence<int, lane...>) {
  return __builtin_shufflevector(a, b, (lane & step ? LANES + (lane ^ step) : lane ^ step)...);
}

using Lanes = std::make_integer_sequence<int, LANES>;

// Transposes LANES vectors of LANES floats.
template <int step = 1>
inline __attribute__((always_inline)) void transpose(Vec (&rows)[LANES]) {
  if constexpr (step < LANES) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
      if (i & step) continue;
      const Vec a = rows[i], b = rows[i + step];
      rows[i] = lower<step>(a, b, Lanes());
      rows[i + step] = upper<step>(a, b, Lanes());
    }
    transpose<2 * step>(rows);
  }
}

// Sums each of LANES vectors; lane i of the result belongs to vector i.
template <int step = LANES / 2>
inline __attribute__((always_inline)) Vec sums(Vec (&rows)[LANES]) {
  if constexpr (step > 0) {
    // The upper half of the vectors moves into the lanes that have the bit `step`.
#pragma GCC unroll 16
    for (int i = 0; i < step; i++)
      rows[i] = same<step>(rows[i], rows[i + step], Lanes()) +
                crossed<step>(rows[i], rows[i + step], Lanes());
    return sums<step / 2>(rows);
  }
  return rows[0];
}

// exp(x) to about 2 units in the last place; x is clamped to what float can hold.
inline Vec exponential(Vec x) {
  const Vec lowest = broadcast(-87.0f), highest = broadcast(88.0f);
  x = x < lowest ? lowest : x;
  x = x > highest ? highest : x;
  // Adding and taking away 1.5 * 2^23 rounds to an integer.
  const Vec magic = broadcast(12582912.0f);
  Vec n = x * 1.44269504f + magic;
  IntVec power = (reinterpret_cast<IntVec>(n) - 0x4b400000 + 127) << 23;
  n -= magic;
  Vec r = x - n * 0.693359375f;
  r += n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return (p * r * r + r + 1.0f) * reinterpret_cast<Vec>(power);
}

// erf(x), absolute error below 2e-7 (Abramowitz and Stegun, 7.1.26).
inline Vec error_function(Vec x) {
  Vec a = x < 0.0f ? -x : x;
  Vec t = 1.0f / (a * 0.3275911f + 1.0f);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  Vec y = 1.0f - p * t * exponential(-a * a);
  return x < 0.0f ? -y : y;
}

}  // namespace
