// Vectors of floats as one processor has them: AVX-512, AVX2 with FMA, or NEON. `+ - *` are the
// compiler's own. Part: the first lanes only, for memory. Lanes: which lanes, for choosing.
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>
#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

namespace attnpass {

using at::BFloat16;
using at::Half;
using std::min;
using Library = at::vec::Vectorized<float>;

#if defined(CPU_CAPABILITY_AVX512)

constexpr int64_t LANES = 16;
constexpr int64_t REGISTERS = 32;
using Vec = __m512;
using Part = __mmask16;
using Lanes = __mmask16;

inline Part first(int64_t n) { return n >= LANES ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }
inline Lanes lanes(Part on) { return on; }

inline Vec all(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* x) { return _mm512_loadu_ps(x); }
inline void store(float* x, Vec v) { _mm512_storeu_ps(x, v); }
inline Vec get(const float* x, Part on) { return _mm512_maskz_loadu_ps(on, x); }
inline void set(float* x, Part on, Vec v) { _mm512_mask_storeu_ps(x, on, v); }

inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }    // a b + c
inline Vec fms(Vec a, Vec b, Vec c) { return _mm512_fmsub_ps(a, b, c); }    // a b - c
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
// where `on`: a b + c, else c
inline Vec fma(Lanes on, Vec a, Vec b, Vec c) { return _mm512_mask3_fmadd_ps(a, b, c, on); }
// b where one of them is no number
inline Vec larger(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec smaller(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec magnitude(Vec x) { return _mm512_abs_ps(x); }
inline Lanes above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Lanes no_less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ); }
inline Lanes differs(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
inline bool any(Lanes on) { return on != 0; }
inline Vec chosen(Lanes on, Vec a) { return _mm512_maskz_mov_ps(on, a); }  // else 0
inline Vec chosen(Lanes on, Vec a, Vec b) { return _mm512_mask_mov_ps(b, on, a); }
inline float sum_of(Vec x) { return _mm512_reduce_add_ps(x); }
inline float most_of(Vec x) { return _mm512_reduce_max_ps(x); }

// The fraction of t, at most 1/2 from 0; `scaled` takes 2^n p by what it leaves in `n`.
constexpr float LEAST = -200;  // 2^LEAST is 0, but -inf has no fraction
inline Vec fraction(Vec t, Vec* n) {
  *n = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return t - *n;
}
inline Vec scaled(Vec p, Vec n) { return _mm512_scalef_ps(p, n); }

// 1 / y: relative error 1e-7 (Exact), or one that bfloat16 rounds away.
template <bool Exact>
inline Vec reciprocal(Vec y) {
  const Vec r = _mm512_rcp14_ps(y);
  if constexpr (!Exact) return r;
  return r * fnma(y, r, all(2.0f));
}

// Floats rounded to nearest even.
inline __m256i narrow(Vec v) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(v);
#else
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const Lanes number = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc0), number, near));
#endif
}

inline void store(BFloat16* x, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), narrow(v));
}

inline Vec get(const BFloat16* x, Part on) {
  const __m256i half = _mm256_maskz_loadu_epi16(on, x);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Vec get(const Half* x, Part on) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(on, x)); }
inline void set(BFloat16* x, Part on, Vec v) { _mm256_mask_storeu_epi16(x, on, narrow(v)); }
inline void set(Half* x, Part on, Vec v) {
  _mm256_mask_storeu_epi16(x, on, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

// Which bytes are not 0.
inline Lanes flags(const uint8_t* x, Part on) {
  const __m128i bytes = _mm_maskz_loadu_epi8(on, x);
  return _mm_test_epi8_mask(bytes, bytes);
}

// Lane i of the result is the sum of x[i].
inline Vec across(const Vec* x) {
  Vec pairs[8], fours[4], halves[2];
  for (int i = 0; i < 8; ++i)
    pairs[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) +
               _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) +
               _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  for (int i = 0; i < 2; ++i)
    halves[i] = _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x44) +
                _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xee);
  return _mm512_shuffle_f32x4(halves[0], halves[1], 0x88) +
         _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd);
}

#else

// Fewer than all lanes of a vector: how many.
using Part = int64_t;
inline Part first(int64_t n) { return std::clamp<int64_t>(n, 0, 64); }

#if defined(CPU_CAPABILITY_AVX2)

constexpr int64_t LANES = 8;
constexpr int64_t REGISTERS = 16;
using Vec = __m256;
using Lanes = __m256i;

inline Lanes lanes(Part on) {
  const __m256i at = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(on)), at);
}

inline Vec all(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* x) { return _mm256_loadu_ps(x); }
inline void store(float* x, Vec v) { _mm256_storeu_ps(x, v); }
inline Vec get(const float* x, Part on) {
  return on >= LANES ? load(x) : _mm256_maskload_ps(x, lanes(on));
}
inline void set(float* x, Part on, Vec v) {
  if (on >= LANES) store(x, v);
  else _mm256_maskstore_ps(x, lanes(on), v);
}

inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec fms(Vec a, Vec b, Vec c) { return _mm256_fmsub_ps(a, b, c); }
inline Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }
inline Vec larger(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec smaller(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec magnitude(Vec x) { return _mm256_andnot_ps(all(-0.0f), x); }
inline Lanes above(Vec a, Vec b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
inline Lanes differs(Vec a, Vec b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ));
}
inline bool any(Lanes on) { return _mm256_movemask_epi8(on) != 0; }
inline Lanes no_less(Vec a, Vec b) {
  return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
inline Vec chosen(Lanes on, Vec a) { return _mm256_and_ps(_mm256_castsi256_ps(on), a); }
inline Vec chosen(Lanes on, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(on));
}
inline Vec fma(Lanes on, Vec a, Vec b, Vec c) { return chosen(on, fma(a, b, c), c); }

inline Vec scaled(Vec p, Vec n) {
  return p * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(n), 23));
}

template <bool>
inline Vec reciprocal(Vec y) {
  const Vec r = _mm256_rcp_ps(y);
  return r * fnma(y, r, all(2.0f));
}

inline __m128i narrow(Vec v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i near = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_ORD_Q));
  const __m256i wide = _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc0), near, number);
  return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
inline __m128i narrow_half(Vec v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

// The first `on` of 8 pairs of bytes.
inline __m128i halves(const void* x, Part on) {
  __m128i out = _mm_setzero_si128();
  if (on >= LANES) return _mm_loadu_si128(static_cast<const __m128i*>(x));
  std::memcpy(&out, x, 2 * on);
  return out;
}
inline void set_halves(void* x, Part on, __m128i v) {
  std::memcpy(x, &v, 2 * min(on, LANES));
}

inline Vec get(const BFloat16* x, Part on) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(x, on)), 16));
}
inline Vec get(const Half* x, Part on) { return _mm256_cvtph_ps(halves(x, on)); }
inline void set(BFloat16* x, Part on, Vec v) { set_halves(x, on, narrow(v)); }
inline void set(Half* x, Part on, Vec v) { set_halves(x, on, narrow_half(v)); }

inline Lanes flags(const uint8_t* x, Part on) {
  int64_t bytes = 0;
  std::memcpy(&bytes, x, min(on, LANES));
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes));
  return _mm256_cmpgt_epi32(wide, _mm256_setzero_si256());
}

inline Vec across(const Vec* x) {
  Vec fours[2];
  for (int i = 0; i < 2; ++i) {
    const Vec* y = x + 4 * i;
    fours[i] = _mm256_hadd_ps(_mm256_hadd_ps(y[0], y[1]), _mm256_hadd_ps(y[2], y[3]));
  }
  return _mm256_permute2f128_ps(fours[0], fours[1], 0x20) +
         _mm256_permute2f128_ps(fours[0], fours[1], 0x31);
}

inline float sum_of(Vec x) {
  __m128 y = _mm256_castps256_ps128(x) + _mm256_extractf128_ps(x, 1);
  y = y + _mm_movehl_ps(y, y);
  return _mm_cvtss_f32(y) + _mm_cvtss_f32(_mm_shuffle_ps(y, y, 1));
}
inline float most_of(Vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ps(y, _mm_shuffle_ps(y, y, 1)));
}

#elif defined(__aarch64__)

constexpr int64_t LANES = 4;
constexpr int64_t REGISTERS = 32;
using Vec = float32x4_t;
using Lanes = uint32x4_t;

inline Lanes lanes(Part on) {
  const uint32x4_t at = {0, 1, 2, 3};
  return vcgtq_u32(vdupq_n_u32(uint32_t(on)), at);
}

inline Vec all(float x) { return vdupq_n_f32(x); }
inline Vec load(const float* x) { return vld1q_f32(x); }
inline void store(float* x, Vec v) { vst1q_f32(x, v); }
inline Vec get(const float* x, Part on) {
  if (on >= LANES) return load(x);
  float part[LANES] = {};
  std::memcpy(part, x, sizeof(float) * on);
  return load(part);
}
inline void set(float* x, Part on, Vec v) {
  if (on >= LANES) store(x, v);
  else std::memcpy(x, &v, sizeof(float) * on);
}

inline Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec fms(Vec a, Vec b, Vec c) { return vfmaq_f32(-c, a, b); }
inline Vec fnma(Vec a, Vec b, Vec c) { return vfmsq_f32(c, a, b); }
inline Vec larger(Vec a, Vec b) { return vmaxq_f32(a, b); }
inline Vec smaller(Vec a, Vec b) { return vminq_f32(a, b); }
inline Vec magnitude(Vec x) { return vabsq_f32(x); }
inline Lanes above(Vec a, Vec b) { return vcgtq_f32(a, b); }
inline Lanes differs(Vec a, Vec b) { return vmvnq_u32(vceqq_f32(a, b)); }
inline bool any(Lanes on) { return vmaxvq_u32(on) != 0; }
inline Lanes no_less(Vec a, Vec b) { return vmvnq_u32(vcltq_f32(a, b)); }
inline Vec chosen(Lanes on, Vec a, Vec b) { return vbslq_f32(on, a, b); }
inline Vec chosen(Lanes on, Vec a) { return chosen(on, a, all(0)); }
inline Vec fma(Lanes on, Vec a, Vec b, Vec c) { return chosen(on, fma(a, b, c), c); }

inline Vec scaled(Vec p, Vec n) {
  return p * vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(n), 23));
}

template <bool>
inline Vec reciprocal(Vec y) {
  return vdivq_f32(all(1), y);
}

inline uint16x4_t narrow(Vec v) {
  const uint32x4_t bits = vreinterpretq_u32_f32(v);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t near = vshrq_n_u32(bits + odd + vdupq_n_u32(0x7fff), 16);
  return vmovn_u32(vbslq_u32(vceqq_f32(v, v), near, vdupq_n_u32(0x7fc0)));
}
inline uint16x4_t narrow_half(Vec v) { return vreinterpret_u16_f16(vcvt_f16_f32(v)); }

// The first `on` of 4 pairs of bytes.
inline uint16x4_t halves(const void* x, Part on) {
  uint16_t part[LANES] = {};
  std::memcpy(part, x, 2 * min(on, LANES));
  return vld1_u16(part);
}
inline void set_halves(void* x, Part on, uint16x4_t v) { std::memcpy(x, &v, 2 * min(on, LANES)); }

inline Vec get(const BFloat16* x, Part on) {
  return vreinterpretq_f32_u32(vshll_n_u16(halves(x, on), 16));
}
inline Vec get(const Half* x, Part on) {
  return vcvt_f32_f16(vreinterpret_f16_u16(halves(x, on)));
}
inline void set(BFloat16* x, Part on, Vec v) { set_halves(x, on, narrow(v)); }
inline void set(Half* x, Part on, Vec v) { set_halves(x, on, narrow_half(v)); }

inline Lanes flags(const uint8_t* x, Part on) {
  uint32_t wide[LANES] = {};
  for (int64_t i = 0; i < min(on, LANES); ++i) wide[i] = x[i];
  return vcgtq_u32(vld1q_u32(wide), vdupq_n_u32(0));
}

inline Vec across(const Vec* x) {
  return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
}

inline float sum_of(Vec x) { return vaddvq_f32(x); }
inline float most_of(Vec x) { return vmaxvq_f32(x); }

#endif

// Of t from LEAST to 127 alone. Added to a large number, t leaves its whole part in the last bits,
// where it is the exponent of 2^n as it stands.
constexpr float LEAST = -127;
inline Vec fraction(Vec t, Vec* n) {
  const Vec large = all(12582912.0f + 127.0f);
  *n = t + large;
  return t - (*n - large);
}

#endif

// Bytes come nearer before they are read: into the nearest cache, or the one behind it.
inline void soon(const void* x) { __builtin_prefetch(x, 0, 2); }
inline void later(const void* x) { __builtin_prefetch(x, 0, 2); }

}  // namespace attnpass
