// Products of matrices, and their operands as products read them. oneDNN multiplies on x86; it has
// no such product for other processors.
#if !defined(OWN_PRODUCTS) && defined(__x86_64__)
#define OWN_PRODUCTS 0
#elif !defined(OWN_PRODUCTS)
#define OWN_PRODUCTS 1
#endif

namespace attnpass {

// How many rows of B one packed row holds: bfloat16 products read pairs.
template <class Mul>
constexpr int64_t PAIR = sizeof(Mul) == 2 ? 2 : 1;

// Columns of a tile are a multiple of this, so that no row of bfloat16 ends between two lines.
template <class Mul>
constexpr int64_t GRAIN = LANES * PAIR<Mul>;

#if OWN_PRODUCTS
// Rows and vectors of columns that are summed side by side, and a factor of each row, fill the
// registers.
constexpr int ROWS = 6, COLUMNS = REGISTERS == 32 ? 4 : 2;

// R rows and C vectors of columns of a product; `last` lanes of the last vector.
template <int R, int C>
void own_tile(int64_t k, const float* a, int64_t ld_a, const float* b, int64_t ld_b, float* c,
              int64_t ld_c, Part last, bool add) {
  Vec sum[R][C];
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i)
      sum[r][i] = add ? get(c + r * ld_c + i * LANES, i + 1 < C ? first(LANES) : last) : all(0);
  for (int64_t j = 0; j < k; ++j) {
    Vec y[C];
    for (int i = 0; i < C; ++i) y[i] = load(b + j * ld_b + i * LANES);
    for (int r = 0; r < R; ++r) {
      const Vec x = all(a[r * ld_a + j]);
      for (int i = 0; i < C; ++i) sum[r][i] = fma(x, y[i], sum[r][i]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i)
      set(c + r * ld_c + i * LANES, i + 1 < C ? first(LANES) : last, sum[r][i]);
}

// All rows of C vectors of columns. They are copied first, side by side: rows of B that lie far
// apart would push each other out of the cache.
template <int C>
void own_columns(int64_t m, int64_t n, int64_t k, const float* a, int64_t ld_a, const float* b,
                 int64_t ld_b, float* c, int64_t ld_c, bool add) {
  thread_local Buffer<float> buffer;
  float* strip = buffer.get(k * C * LANES);
  const Part last = first(n - (C - 1) * LANES);
  for (int64_t j = 0; j < k; ++j)
    for (int i = 0; i < C; ++i)
      store(strip + (j * C + i) * LANES,
            get(b + j * ld_b + i * LANES, i + 1 < C ? first(LANES) : last));
  auto tile = [&](auto rows, int64_t r) {
    own_tile<rows(), C>(k, a + r * ld_a, ld_a, strip, C * LANES, c + r * ld_c, ld_c, last, add);
  };
  int64_t r = 0;
  for (; r + ROWS <= m; r += ROWS) tile(std::integral_constant<int, ROWS>(), r);
  for (; r + 2 <= m; r += 2) tile(std::integral_constant<int, 2>(), r);
  if (r < m) tile(std::integral_constant<int, 1>(), r);
}

inline void own_product(int64_t m, int64_t n, int64_t k, const float* a, int64_t ld_a,
                        const float* b, int64_t ld_b, float* c, int64_t ld_c, bool add) {
  int64_t i = 0;
  for (; i + COLUMNS * LANES <= n; i += COLUMNS * LANES)
    own_columns<COLUMNS>(m, COLUMNS * LANES, k, a, ld_a, b + i, ld_b, c + i, ld_c, add);
  for (; i < n; i += LANES)
    own_columns<1>(m, min(LANES, n - i), k, a, ld_a, b + i, ld_b, c + i, ld_c, add);
}
#endif

// C [m, n] (+)= A [m, k] B [k, n], B packed by `paired` or `turned`.
template <class Mul>
inline void product(int64_t m, int64_t n, int64_t k, const Mul* a, int64_t ld_a, const Mul* b,
                    int64_t ld_b, float* c, int64_t ld_c, bool add) {
#if OWN_PRODUCTS
  own_product(m, n, k, a, ld_a, b, ld_b, c, ld_c, add);
#else
  at::native::cpublas::brgemm(m, n, k, ld_a, ld_b, ld_c, add, a, b, c, PAIR<Mul> == 2);
#endif
}

// At the end of the work of a thread.
template <class Mul>
void release_products() {
#if !OWN_PRODUCTS
  at::native::cpublas::brgemm_release(PAIR<Mul> == 2);
#endif
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

// The sum of the squares of n entries.
template <class Mul>
float squares(const Mul* x, int64_t n) {
  Vec sum = all(0);
  for (int64_t i = 0; i < n; i += LANES) {
    const Vec y = get(x + i, first(n - i));
    sum = fma(y, y, sum);
  }
  return sum_of(sum);
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

#if defined(__AVX512BF16__)
constexpr bool NATIVE_BFLOAT16 = true;

// B = x: [n, d] as pairs of rows; rows from n up to the pair are zero. `d` columns stay apart.
inline void paired(const BFloat16* x, int64_t ld, int64_t n, int64_t d, BFloat16* out) {
  for (int64_t i = 0; i < n; i += 2) {
    const BFloat16* row = x + i * ld;
    auto* to = reinterpret_cast<uint32_t*>(out + i * d);
    for (int64_t c = 0; c < d; c += LANES) {
      const Part on = first(d - c);
      const __m256i even = _mm256_maskz_loadu_epi16(on, row + c);
      const __m256i odd = _mm256_maskz_loadu_epi16(i + 1 < n ? on : 0, row + ld + c);
      const __m512i high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
      _mm512_mask_storeu_epi32(to + c, on, _mm512_or_si512(_mm512_cvtepu16_epi32(even), high));
    }
  }
}
#else
constexpr bool NATIVE_BFLOAT16 = false;
#endif

}  // namespace attnpass
