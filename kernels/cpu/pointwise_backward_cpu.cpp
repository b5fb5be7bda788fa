// Backward of the pointwise family: the weights are computed again from q and k, transposed
// ([keys, queries]), so that every product reads rows as they lie in memory.
// A task is one group of heads and every `chunks`-th block of keys. Sums that several tasks add to
// (dq, sums over keys) lie apart per chunk, so that the result does not depend on timing.

namespace attnpass {

struct Backward {
  int64_t b, h, g, t, s, d, dv, block_m, block_n, heads, function, causal, chunks, serial;
  double scale;
  Array q, k, v, bias, keep, tau, offset, gain;  // softmax: the log-sum-exp lies in `offset`
  Array grad, dq, dk, dv_, dbias, dtau, doffset, dgain;  // per chunk: see pointwise_launch.py
  // softmax: `delta` and the products of `out` with grad are what a row's weights times their
  // gradients sum up to
  Array delta, out;
};

// A log-sum-exp beyond this, rounded to float32, would change weights by more than 1e-4.
constexpr float FAR = 2048;

// One tile [n keys, m queries] of scores and of grad.v, and the results computed from both.
template <class Mul>
struct Tile {
  int64_t n, m, width, diagonal;  // query c sees key r where c >= r + diagonal
  const float *s, *dp;            // q.k and grad.v, [n, width]
  const float* added;             // tau * bias or NONE: null, [n] (shared) or [n, width]
  bool shared;
  float a, tau;
  const float *offset, *gain, *delta;  // [width]
  float *doffset, *dgain;         // [width], added to
  float* dtau;                    // added to
  float* ds;                      // [n, width] gradient of the logits, where a bias needs it
  Mul *p, *ds_rows, *ds_pairs;    // [n, width]: gain * p, a * ds; ds again as pairs of keys
};

// Float32 products take rows as they are.
inline void put(float* rows, float*, int64_t at, int64_t, bool, Vec v) { store(rows + at, v); }

#if defined(__AVX512BF16__)
// Pairs of keys: the even one is written alone, the odd one joins it.
inline void put(BFloat16* rows, BFloat16* pairs, int64_t at, int64_t pair, bool odd, Vec v) {
  const __m256i x = narrow(v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows + at), x);
  auto* to = reinterpret_cast<__m512i*>(pairs + pair);
  const __m512i wide = _mm512_cvtepu16_epi32(x);
  _mm512_storeu_si512(
      to, odd ? _mm512_or_si512(_mm512_loadu_si512(to), _mm512_slli_epi32(wide, 16)) : wide);
}
#endif

template <class H>
constexpr bool NORMALISED = std::is_same_v<H, Exp<true>> || std::is_same_v<H, Exp<false>>;

template <class H, class Mul>
struct Slopes {
  static void run(const Tile<Mul>& x) {
    for (int64_t c = 0; c < x.width; c += LANES) {
      const Vec gain = load(x.gain + c), shift = load(x.offset + c) * all(H::UNIT);
      const Vec delta = load(x.delta + c);
      const Lanes inside = lanes(first(x.m - c));
      Vec doffset = load(x.doffset + c), dgain = load(x.dgain + c), dtau = all(0), weighed;
      for (int64_t r = 0; r < x.n; ++r) {
        const int64_t at = r * x.width + c;
        Lanes kept = inside & ~lanes(first(r + x.diagonal - c));
        const Vec raw = load(x.s + at), dp = load(x.dp + at);
        Vec t = fma(raw, all(x.a * H::UNIT), shift), add = all(0);
        if (x.added) {
          add = x.shared ? all(x.added[r]) : load(x.added + at);
          kept &= differs(add, all(NONE));
          t = fma(add, all(H::UNIT), t);
        }
        const Vec p = chosen(kept, H::value(t));
        const Vec slope = H::slope(t, p);
        if constexpr (NORMALISED<H>) weighed = dp - delta;
        else weighed = dp * gain;
        const Vec ds = chosen(kept, weighed * slope);
        if constexpr (!NORMALISED<H>) {
          dgain = fma(kept, p, dp, dgain);
          doffset = doffset + ds;
        }
        if (x.dtau) {
          // tau * (scale q.k + bias) times ds; the caller divides by tau
          const Vec logit = fma(raw, all(x.a), add);
          dtau = fma(kept, ds, logit, dtau);
        }
        if (x.ds) store(x.ds + at, ds * all(x.tau));
        store(x.p + at, chosen(kept, p * gain));
        put(x.ds_rows, x.ds_pairs, at, (r & ~1) * x.width + 2 * c, r & 1, ds * all(x.a));
      }
      store(x.doffset + c, doffset);
      store(x.dgain + c, dgain);
      if (x.dtau) *x.dtau += sum_of(dtau);
    }
  }
};

template <class In, class Mul>
struct Work {
  Buffer<Mul> k, v, k_turned, k_pairs, q_copy, g_copy, q_turned, g_turned, q_pairs, g_pairs;
  Buffer<Mul> p, ds_rows, ds_pairs;
  Buffer<float> s, dp, added, row, ds, dk, dv, dq, dq_rows, terms;
};

// k^T [d, n] as the left factor of a product: no pairs, columns from n up to width zero.
template <class Mul>
void features(const Mul* k, int64_t ld, int64_t n, int64_t d, int64_t width, Buffer<Mul>& pairs,
              Mul* out) {
  if constexpr (PAIR<Mul> == 1) return turned(k, ld, n, d, width, out);
  Mul* pair = pairs.get(up(d, PAIR<Mul>) * width);
  turned(k, ld, n, d, width, pair);
  for (int64_t c = 0; c < d; ++c) {
    const Mul* from = pair + c / 2 * 2 * width + c % 2;
    for (int64_t r = 0; r < width; ++r) out[c * width + r] = from[2 * r];
  }
}

// The sum of the products of n entries.
template <class In>
float products(const In* x, const In* y, int64_t n) {
  Vec sum = all(0);
  for (int64_t i = 0; i < n; i += LANES)
    sum = fma(get(x + i, first(n - i)), get(y + i, first(n - i)), sum);
  return sum_of(sum);
}

// Whether the log-sum-exp of a row is too far from 0.
inline bool far(const Backward& p) {
  for (int64_t b = 0; b < p.b; ++b)
    for (int64_t h = 0; h < p.h; ++h)
      for (int64_t i = 0; i < p.t; ++i) {
        const float size = std::abs(*p.offset.at<float>(b, h, i));
        if (size > FAR && size < INFINITY) return true;
      }
  return false;
}

// Row `x` of a [.., T] array with stride, or a constant, as floats; zero from m up to width.
inline void terms(const Array& x, int64_t b, int64_t h, int64_t i, int64_t m, int64_t width,
                  float otherwise, float* out) {
  for (int64_t r = 0; r < m; ++r) out[r] = x ? *x.at<float>(b, h, i + r) : otherwise;
  std::fill(out + m, out + width, 0.0f);
}

template <class In, class Mul>
struct Task {
  const Backward& p;
  Work<In, Mul>& x;
  void (*slopes)(const Tile<Mul>&);
  int64_t chunk, b, g, wide = up(p.d, PAIR<Mul>), wide_v = up(p.dv, PAIR<Mul>);
  int64_t most = up(p.block_n, GRAIN<Mul>);
  const Mul *k = nullptr, *v = nullptr;
  int64_t ld_k = 0, ld_v = 0;

  int64_t stored(int64_t j) const { return up(min(p.block_n, p.s - j), GRAIN<Mul>); }

  void run() {
    k = rows<In, Mul>(p.k.at<In>(b, g, 0), p.k.stride[2], p.s, p.d, x.k, &ld_k);
    v = rows<In, Mul>(p.v.at<In>(b, g, 0), p.v.stride[2], p.s, p.dv, x.v, &ld_v);
    Mul* kt = x.k_turned.get(up(p.s, GRAIN<Mul>) * p.d);
    for (int64_t j = 0; j < p.s; j += p.block_n) {
      const int64_t n = min(p.block_n, p.s - j), width = stored(j);
      features(k + j * ld_k, ld_k, n, p.d, width, x.k_pairs, kt + j * p.d);
    }
    std::fill_n(x.dk.get(p.s * p.d), p.s * p.d, 0.0f);
    std::fill_n(x.dv.get(p.s * p.dv), p.s * p.dv, 0.0f);
    const int64_t group = p.h / p.g;
    for (int64_t h = g * group; h < (g + 1) * group; ++h)
      for (int64_t i = 0; i < p.t; i += p.block_m) queries(h, i);
    for (int64_t j = chunk * p.block_n; j < p.s; j += p.chunks * p.block_n)
      for (int64_t r = j; r < min(p.s, j + p.block_n); ++r) {
        at::vec::convert(x.dk.get(0) + r * p.d, p.dk.at<In>(b, g, r), p.d);
        at::vec::convert(x.dv.get(0) + r * p.dv, p.dv_.at<In>(b, g, r), p.dv);
      }
  }

  // One block of queries of head h against this chunk's keys.
  void queries(int64_t h, int64_t i) {
    const int64_t m = min(p.block_m, p.t - i), width = up(m, GRAIN<Mul>);
    const int64_t first_key = chunk * p.block_n, step = p.chunks * p.block_n;
    const int64_t stop = p.causal ? min(p.s, i + m) : p.s;
    int64_t ld_q, ld_g;
    const Mul* q = rows<In, Mul>(p.q.at<In>(b, h, i), p.q.stride[2], m, p.d, x.q_copy, &ld_q);
    const Mul* gr =
        rows<In, Mul>(p.grad.at<In>(b, h, i), p.grad.stride[2], m, p.dv, x.g_copy, &ld_g);
    Mul *q_turned = x.q_turned.get(wide * width), *g_turned = x.g_turned.get(wide_v * width);
    turned(q, ld_q, m, p.d, width, q_turned);
    turned(gr, ld_g, m, p.dv, width, g_turned);
    if constexpr (PAIR<Mul> == 2) {
      Mul *qp = x.q_pairs.get(up(m, 2) * p.d), *gp = x.g_pairs.get(up(m, 2) * p.dv);
      paired(q, ld_q, m, p.d, qp);
      paired(gr, ld_g, m, p.dv, gp);
      q = qp, gr = gp, ld_q = p.d, ld_g = p.dv;
    }
    const float tau = p.tau ? *(p.tau.at<float>(0, 0, 0) + h * p.tau.stride[3]) : 1.0f;
    float* sums = x.terms.get(5 * width);
    terms(p.offset, b, h, i, m, width, 0, sums);
    terms(p.gain, b, h, i, m, width, 1, sums + width);
    std::fill_n(sums + 2 * width, 2 * width, 0.0f);
    terms(p.delta, b, h, i, m, width, 0, sums + 4 * width);
    if (p.function == SOFTMAX)
      for (int64_t r = 0; r < m; ++r) {
        // a row without a kept key has no weights
        sums[r] = sums[r] == -INFINITY ? 0 : -sums[r];
        if (p.out)
          sums[4 * width + r] +=
              products(p.grad.at<In>(b, h, i + r), p.out.at<In>(b, h, i + r), p.dv);
      }
    float dtau = 0;
    float* dq = x.dq.get(p.d * width);
    const bool masked = p.bias || p.keep, each_row = per_row(p.bias) || per_row(p.keep);
    float *scores = x.s.get(most * width), *slope = x.dp.get(most * width);
    Mul *p_rows, *ds_rows;  // float32 results take the place of what they are computed from
    if constexpr (std::is_same_v<Mul, float>) p_rows = scores, ds_rows = slope;
    else p_rows = x.p.get(most * width), ds_rows = x.ds_rows.get(most * width);
    Tile<Mul> tile{0, m, width, -width, scores, slope,
                   masked ? x.added.get(most * (each_row ? width : 1)) : nullptr, !each_row,
                   float(p.scale) * tau, tau, sums, sums + width, sums + 4 * width,
                   sums + 2 * width, sums + 3 * width, p.dtau ? &dtau : nullptr,
                   p.dbias ? x.ds.get(most * width) : nullptr, p_rows, ds_rows,
                   PAIR<Mul> == 2 ? x.ds_pairs.get(most * width) : nullptr};
    bool begun = false;
    for (int64_t j = first_key; j < stop; j += step) {
      const int64_t n = tile.n = min(p.block_n, stop - j);
      if (masked && !mask(h, i, j, tile)) continue;
      // no lane is cut where the first query already sees the last key
      tile.diagonal = p.causal ? j - i : -width - n;
      product<Mul>(n, width, wide, k + j * ld_k, ld_k, q_turned, width,
                   const_cast<float*>(tile.s), width, false);
      product<Mul>(n, width, wide_v, v + j * ld_v, ld_v, g_turned, width,
                   const_cast<float*>(tile.dp), width, false);
      slopes(tile);
      if (tile.ds) bias(h, i, j, tile);
      const int64_t even = up(m, PAIR<Mul>);
      product<Mul>(n, p.dv, even, tile.p, width, gr, ld_g, x.dv.get(0) + j * p.dv, p.dv, true);
      product<Mul>(n, p.d, even, tile.ds_rows, width, q, ld_q, x.dk.get(0) + j * p.d, p.d, true);
      if (PAIR<Mul> == 2 && n % 2)
        for (int64_t c = 0; c < width; ++c) tile.ds_pairs[(n - 1) * width + 2 * c + 1] = Mul(0);
      const Mul* ds = PAIR<Mul> == 2 ? tile.ds_pairs : tile.ds_rows;
      product<Mul>(p.d, width, up(n, PAIR<Mul>), x.k_turned.get(0) + j * p.d, stored(j), ds,
                   width, dq, width, begun);
      begun = true;
    }
    if (!begun) std::fill_n(dq, p.d * width, 0.0f);
    finish(h, i, m, width, dq, sums, dtau / tau);
  }

  // Fills tile.added; false where no key of the block is kept.
  bool mask(int64_t h, int64_t i, int64_t j, Tile<Mul>& tile) {
    float* out = const_cast<float*>(tile.added);
    if (tile.shared) {
      added(p.bias, p.keep, b, h, i, j, tile.n, up(tile.n, LANES), tile.tau, out);
      return std::any_of(out, out + tile.n, [](float y) { return y != NONE; });
    }
    float* row = x.row.get(tile.m * most);
    for (int64_t r = 0; r < tile.m; ++r)
      added(p.bias, p.keep, b, h, i + r, j, tile.n, tile.n, tile.tau, row + r * tile.n);
    at::vec::transpose_mxn<float>(row, tile.n, out, tile.width, tile.m, tile.n);
    return true;
  }

  // Adds the tile's gradient of the logits to the bias, summed over what it broadcasts.
  void bias(int64_t h, int64_t i, int64_t j, const Tile<Mul>& tile) {
    const int64_t step = p.dbias.stride[3];
    for (int64_t r = 0; r < tile.m; ++r) {
      float* to = p.dbias.at<float>(b, h, i + r) + j * step;
      for (int64_t c = 0; c < tile.n; ++c) to[c * step] += tile.ds[c * tile.width + r];
    }
  }

  void finish(int64_t h, int64_t i, int64_t m, int64_t width, const float* dq, const float* sums,
              float dtau) {
    const int64_t head = (chunk * p.b + b) * p.h + h, at = (head * p.t + i) * p.d;
    const bool whole = p.chunks == 1 && !std::is_same_v<In, float>;  // dq has the type of q
    float* out = whole ? x.dq_rows.get(m * p.d) : reinterpret_cast<float*>(p.dq.data) + at;
    at::vec::transpose_mxn<float>(dq, width, out, p.d, p.d, m);
    if (whole) at::vec::convert(out, reinterpret_cast<In*>(p.dq.data) + at, m * p.d);
    const int64_t row = head * p.t + i;
    if (p.doffset)
      std::copy_n(sums + 2 * width, m, reinterpret_cast<float*>(p.doffset.data) + row);
    if (p.dgain) std::copy_n(sums + 3 * width, m, reinterpret_cast<float*>(p.dgain.data) + row);
    if (p.dtau) reinterpret_cast<float*>(p.dtau.data)[head] += dtau;
  }
};

template <class In, class Mul>
void backward(const Backward& p) {
  const auto slopes = of<Slopes, Mul, void (*)(const Tile<Mul>&)>(p.function);
  const int64_t each = p.b * p.g;
  // a bias may be shared by every head: one thread then takes all heads of its chunk
  at::parallel_for(0, p.chunks * each, p.serial ? each : 1, [&](int64_t begin, int64_t end) {
    with_scratch<Work<In, Mul>>(needs_much(p), [&](Work<In, Mul>& work) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task % each;
        Task<In, Mul>{p, work, slopes, task / each, head / p.g, head % p.g}.run();
      }
    });
    release_products<Mul>();
  });
}

}  // namespace attnpass

extern "C" int pointwise_backward(const attnpass::Backward* problem, size_t size) {
  using namespace attnpass;
  return guarded(problem, size, [](const auto& p) {
    if (p.function == SOFTMAX && far(p)) throw std::range_error("log-sum-exp");
    if (p.q.type == FLOAT32) backward<float, float>(p);
    else if (p.q.type == FLOAT16) backward<Half, float>(p);
    else if constexpr (NATIVE_BFLOAT16) backward<BFloat16, BFloat16>(p);
    else backward<BFloat16, float>(p);
  });
}
