// Shared by the CPU kernels: strided arrays, vectors of 16 floats, h, packing, masks.
// Shapes: B batch, H query heads, G key/value heads, T queries, S keys, D head dim, DV value dim.
// Logits, h and sums are float32; products read float32 or, from bfloat16 inputs, bfloat16.
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <type_traits>
#include <vector>

namespace attnpass {

using at::BFloat16;
using at::Half;
using std::min;

constexpr int64_t LANES = 16;
constexpr float NONE = -INFINITY;  // added to a logit: the position is not kept

enum Type : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BOOL = 3 };

// A tensor [B, H, T, S] or the like; a stride of 0 broadcasts; data is null where there is none.
struct Array {
  char* data;
  int64_t type;
  int64_t stride[4];

  explicit operator bool() const { return data != nullptr; }

  template <class E>
  E* at(int64_t i, int64_t j, int64_t k) const {
    return reinterpret_cast<E*>(data) + i * stride[0] + j * stride[1] + k * stride[2];
  }
};

inline int64_t up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

// Memory of one thread, 64-byte aligned, not initialised; it grows and never shrinks.
template <class E>
struct Buffer {
  std::unique_ptr<E[]> held;
  int64_t size = 0;
  E* get(int64_t n) {
    const int64_t wanted = n + 64 / sizeof(E);
    if (size < wanted) {
      held.reset(new E[wanted]);
      size = wanted;
    }
    return reinterpret_cast<E*>((reinterpret_cast<uintptr_t>(held.get()) + 63) & ~uintptr_t(63));
  }
};

constexpr int64_t MUCH = 1 << 20;  // entries

// Whether a task needs much memory: for the keys and values of a head, or for a tile of scores.
template <class P>
bool needs_much(const P& p) {
  return p.s * (p.d + p.dv) > MUCH || min(p.block_m, p.t) * min(p.block_n, p.s) > MUCH;
}

// Calls f(scratch) with memory that the thread keeps between calls or, for `much` memory, with
// memory that is freed after the call.
template <class Scratch, class F>
void with_scratch(bool much, F f) {
  if (much) {
    Scratch own;
    f(own);
  } else {
    thread_local Scratch kept;
    f(kept);
  }
}

// Vectors.

using Vec = __m512;
using Lanes = __mmask16;
using Library = at::vec::Vectorized<float>;

inline Vec load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* x, Vec v) { _mm512_storeu_ps(x, v); }
inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Lanes first(int64_t n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

// 16 floats rounded to nearest even.
inline __m256i narrow(Vec v) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_add_epi32(bits, half), 16));
#endif
}

inline void store(BFloat16* x, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), narrow(v));
}

// The first lanes only, from and to any type.
inline Vec get(const float* x, Lanes on) { return _mm512_maskz_loadu_ps(on, x); }
inline Vec get(const BFloat16* x, Lanes on) {
  const __m256i half = _mm256_maskz_loadu_epi16(on, x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Vec get(const Half* x, Lanes on) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(on, x));
}
inline void set(float* x, Lanes on, Vec v) { _mm512_mask_storeu_ps(x, on, v); }
inline void set(BFloat16* x, Lanes on, Vec v) { _mm256_mask_storeu_epi16(x, on, narrow(v)); }
inline void set(Half* x, Lanes on, Vec v) {
  _mm256_mask_storeu_epi16(x, on, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// The functions h and their slopes.

// 2^t: relative error 1e-7 (Exact) or 1e-4, which bfloat16 rounds away. inf and 0 at the ends.
template <bool Exact>
inline Vec exp2(Vec t) {
  const Vec n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec f = _mm512_sub_ps(t, n);
  Vec p;
  if constexpr (Exact) {
    p = _mm512_fmadd_ps(all(1.326472720e-3f), f, all(9.671512640e-3f));
    p = _mm512_fmadd_ps(p, f, all(5.550733743e-2f));
    p = _mm512_fmadd_ps(p, f, all(2.402224209e-1f));
    p = _mm512_fmadd_ps(p, f, all(6.931469776e-1f));
  } else {
    p = _mm512_fmadd_ps(all(5.500893112e-2f), f, all(2.422109593e-1f));
    p = _mm512_fmadd_ps(p, f, all(6.932829271e-1f));
  }
  return _mm512_scalef_ps(_mm512_fmadd_ps(p, f, all(1.0f)), n);
}

// For softmax, whose exponents are 0 at most: a value that is -inf gives 0, not a number none.
template <bool Exact>
inline Vec power(Vec t) {
  return exp2<Exact>(_mm512_max_ps(all(-200.0f), t));
}

// Every h takes t = UNIT * logit; `value` and `slope` are in terms of the logit.
template <bool Exact>
struct Sigmoid {
  static constexpr float UNIT = -1.4426950408889634f;
  static Vec value(Vec t) {
    // 2^126 and its reciprocal are normal numbers; a NaN passes
    const Vec y = _mm512_add_ps(all(1.0f), exp2<Exact>(_mm512_min_ps(all(126.0f), t)));
    const Vec r = _mm512_rcp14_ps(y);
    if constexpr (!Exact) return r;
    return _mm512_mul_ps(r, _mm512_fnmadd_ps(y, r, all(2.0f)));
  }
  static Vec slope(Vec, Vec p) { return _mm512_fnmadd_ps(p, p, p); }
};

struct Relu {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return _mm512_max_ps(all(0), x); }
  static Vec slope(Vec x, Vec) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, all(0), _CMP_GT_OQ), all(1));
  }
};

struct Relu2 {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) {
    const Vec r = Relu::value(x);
    return _mm512_mul_ps(r, r);
  }
  static Vec slope(Vec x, Vec) { return _mm512_mul_ps(all(2), Relu::value(x)); }
};

struct Relu6 {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return _mm512_min_ps(all(6), Relu::value(x)); }
  static Vec slope(Vec x, Vec) {
    const Lanes above = _mm512_cmp_ps_mask(x, all(0), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(_mm512_mask_cmp_ps_mask(above, x, all(6), _CMP_LT_OQ), all(1));
  }
};

struct Identity {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) { return x; }
  static Vec slope(Vec, Vec) { return all(1); }
};

struct Gelu {
  static constexpr float UNIT = 1;
  static Vec phi(Vec x) {
    return _mm512_mul_ps(all(0.5f), Library(_mm512_mul_ps(x, all(-0.70710678f))).erfc());
  }
  static Vec value(Vec x) { return _mm512_mul_ps(x, phi(x)); }
  static Vec slope(Vec x, Vec) {
    const Vec power = _mm512_mul_ps(all(-0.5f * 1.44269504f), _mm512_mul_ps(x, x));
    return _mm512_fmadd_ps(_mm512_mul_ps(x, all(0.39894228f)), exp2<true>(power), phi(x));
  }
};

struct Softplus {
  static constexpr float UNIT = 1;
  static Vec value(Vec x) {
    // log(1 + e^x) without overflow
    const Vec e = exp2<true>(_mm512_mul_ps(all(-1.44269504f), _mm512_abs_ps(x)));
    return _mm512_add_ps(_mm512_max_ps(all(0), x), Library(e).log1p());
  }
  static Vec slope(Vec x, Vec) {
    return Sigmoid<true>::value(_mm512_mul_ps(x, all(Sigmoid<true>::UNIT)));
  }
};

// The weights of softmax, once the log-sum-exp of their row is known and is the negative offset.
template <bool Exact>
struct Exp {
  static constexpr float UNIT = 1.4426950408889634f;
  static Vec value(Vec t) { return power<Exact>(t); }
  static Vec slope(Vec, Vec p) { return p; }
};

// The function of a numbered h; the order is that of H in activations.py. `Mul` is the type that
// products read. SOFTMAX is none of H.
constexpr int64_t SOFTMAX = 7;

template <template <class, class> class F, class Mul, class Pointer>
Pointer of(int64_t h) {
  constexpr bool exact = std::is_same_v<Mul, float>;
  static const Pointer table[] = {F<Sigmoid<exact>, Mul>::run, F<Relu, Mul>::run,
                                  F<Relu2, Mul>::run,          F<Gelu, Mul>::run,
                                  F<Softplus, Mul>::run,       F<Identity, Mul>::run,
                                  F<Relu6, Mul>::run,          F<Exp<exact>, Mul>::run};
  return table[h];
}

// Products.

// How many rows of B one packed row holds: bfloat16 products read pairs.
template <class Mul>
constexpr int64_t PAIR = sizeof(Mul) == 2 ? 2 : 1;

// Columns of a tile are a multiple of this, so that no row of bfloat16 ends between two lines.
template <class Mul>
constexpr int64_t GRAIN = LANES * PAIR<Mul>;

// C [m, n] (+)= A [m, k] B [k, n], B packed by `pairs` or `turned`.
template <class Mul>
inline void product(int64_t m, int64_t n, int64_t k, const Mul* a, int64_t ld_a, const Mul* b,
                    int64_t ld_b, float* c, int64_t ld_c, bool add) {
  at::native::cpublas::brgemm(m, n, k, ld_a, ld_b, ld_c, add, a, b, c, PAIR<Mul> == 2);
}

// Rows of `x` as products read them: in place where that is possible, else a padded copy.
// `width` is the row length up to the pair; `ld` comes back as the distance of rows.
template <class In, class Mul>
const Mul* rows(const In* x, int64_t stride, int64_t n, int64_t d, Buffer<Mul>& copy,
                int64_t* ld) {
  const int64_t width = up(d, PAIR<Mul>);
  if constexpr (std::is_same_v<In, Mul>) {
    if (width == d && stride >= d) {
      *ld = stride;
      return x;
    }
  }
  Mul* out = copy.get(n * width);
  for (int64_t i = 0; i < n; ++i) {
    at::vec::convert(x + i * stride, out + i * width, d);
    if (width > d) out[i * width + d] = 0;
  }
  *ld = width;
  return out;
}

// B = x^T: [d, n] from rows `x [n, d]`, columns from n up to `width` zero, pairs along d.
template <class Mul>
void turned(const Mul* x, int64_t ld, int64_t n, int64_t d, int64_t width, Mul* out) {
  // a pair of bfloat16 moves as one float
  const int64_t pairs = up(d, PAIR<Mul>) / PAIR<Mul>;
  float* to = reinterpret_cast<float*>(out);
  if (ld % PAIR<Mul> == 0) {
    at::vec::transpose_mxn<float>(reinterpret_cast<const float*>(x), ld / PAIR<Mul>, to, width, n,
                                  pairs);
  } else {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < pairs; ++c)
        std::copy_n(x + i * ld + c * PAIR<Mul>, PAIR<Mul>, out + (c * width + i) * PAIR<Mul>);
  }
  for (int64_t c = 0; width > n && c < pairs; ++c)
    std::fill(to + c * width + n, to + (c + 1) * width, 0.0f);
}

// B = x: [n, d] as pairs of rows; rows from n up to the pair are zero. `d` columns stay apart.
inline void paired(const BFloat16* x, int64_t ld, int64_t n, int64_t d, BFloat16* out) {
  for (int64_t i = 0; i < n; i += 2) {
    const BFloat16* row = x + i * ld;
    auto* to = reinterpret_cast<uint32_t*>(out + i * d);
    for (int64_t c = 0; c < d; c += LANES) {
      const Lanes on = first(d - c);
      const __m256i even = _mm256_maskz_loadu_epi16(on, row + c);
      const __m256i odd = _mm256_maskz_loadu_epi16(i + 1 < n ? on : 0, row + ld + c);
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
      _mm512_mask_storeu_epi32(to + c, on, _mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
    }
  }
}

// Masks.

// 16 entries of a row, `step` apart.
template <class E>
Vec stepped(const E* x, int64_t step, Lanes on) {
  if (step == 1) return get(x, on);
  alignas(64) float lane[LANES] = {};
  for (int64_t i = 0; i < LANES && (on >> i & 1); ++i) lane[i] = float(x[i * step]);
  return load(lane);
}

// Flags are read as bytes: a bool that was a view of other bytes may hold any of them.
inline Lanes stepped(const uint8_t* x, int64_t step, Lanes on) {
  if (step == 0) return *x ? on : 0;
  if (step == 1) {
    const __m128i bytes = _mm_maskz_loadu_epi8(on, x);
    return _mm_test_epi8_mask(bytes, bytes);
  }
  Lanes kept = 0;
  for (int64_t i = 0; i < LANES && (on >> i & 1); ++i) kept |= Lanes(x[i * step] != 0) << i;
  return kept;
}

// Writes tau * bias, and NONE where not kept, for the keys [j, j + n) of row t; NONE up to width.
inline void added(const Array& bias, const Array& keep, int64_t b, int64_t h, int64_t t, int64_t j,
                  int64_t n, int64_t width, float tau, float* out) {
  const uint8_t* kept = keep ? keep.at<uint8_t>(b, h, t) + j * keep.stride[3] : nullptr;
  auto write = [&](const auto* x) {
    for (int64_t i = 0; i < width; i += LANES) {
      const Lanes on = first(n - i), dead = first(width - i);
      const int64_t step = bias.stride[3];
      const Vec add =
          x && on ? _mm512_mul_ps(stepped(x + (j + i) * step, step, on), all(tau)) : all(0);
      const Lanes live = kept && on ? stepped(kept + i * keep.stride[3], keep.stride[3], on) : on;
      _mm512_mask_storeu_ps(out + i, dead, _mm512_mask_mov_ps(all(NONE), live, add));
    }
  };
  if (!bias || bias.type == FLOAT32) write(bias ? bias.at<float>(b, h, t) : nullptr);
  else if (bias.type == BFLOAT16) write(bias.at<BFloat16>(b, h, t));
  else write(bias.at<Half>(b, h, t));
}

// Whether a row depends on the query, so that it cannot be made once per column block.
inline bool per_row(const Array& x) { return x && x.stride[2] != 0; }

#if defined(__AVX512BF16__)
constexpr bool NATIVE_BFLOAT16 = true;
#else
constexpr bool NATIVE_BFLOAT16 = false;
#endif

// Returns 0; 1 where oneDNN, switched off, throws: the caller then takes another path; 2 where the
// caller's struct has another size.
template <class P, class F>
int guarded(const P* problem, size_t size, F run) {
  if (size != sizeof(P)) return 2;
  try {
    run(*problem);
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // namespace attnpass
