// The same results for few queries (decoding): products would be too narrow for tiles, and to pack
// the keys would cost as much as to use them. A task is a stretch of the keys of one key head, read
// once, as they lie, for all queries of its group of heads. What the stretches of a head sum up to
// is joined at the end.

namespace attnpass {

constexpr int64_t AHEAD = 64;  // keys
constexpr int SUMS = REGISTERS / 2;  // vectors that are summed side by side
constexpr int64_t STRIP = 32;  // keys
constexpr int64_t KEYS = 128;  // keys of a block: their rows stay in the nearest cache

// Asks for the lines of rows in the order in which they lie, a little at a time.
template <class In>
struct Ahead {
  static constexpr int64_t LINE = 64 / sizeof(In);
  const In* row;
  int64_t ld, d, column = 0;

  void line() {
    soon(row + column);
    if ((column += LINE) >= d) column = 0, row += ld;
  }
};

// One step of a dot product: sum + x[c, c + STEP) . y[c, c + STEP), at first of floats. Where the
// processor multiplies pairs of bfloat16, it does so without turning them into floats.
template <class In, class Query>
struct Dot {
  static constexpr int64_t STEP = LANES;
  using Key = Vec;
  static Key key(const In* x, int64_t left) { return get(x, first(left)); }
  static Vec add(Vec sum, const Query* q, Key k) { return fma(load(q), k, sum); }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<BFloat16, BFloat16> {
  static constexpr int64_t STEP = 2 * LANES;
  using Key = __m512bh;
  static Key key(const BFloat16* x, int64_t left) {
    const __mmask32 on = left >= STEP ? ~__mmask32(0) : (__mmask32(1) << left) - 1;
    return (__m512bh)_mm512_maskz_loadu_epi16(on, x);
  }
  static Vec add(Vec sum, const BFloat16* q, Key k) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(q), k);
  }
};
#endif

// scores[r, j] = q[r] . k[j] for R rows and n keys; rows of q are padded with zeros.
template <int R, class In, class Query>
void scored(const Query* q, int64_t ld_q, const In* k, int64_t ld_k, int64_t n, int64_t d,
            float* scores, int64_t ld, bool again) {
  using Step = Dot<In, Query>;
  constexpr int K = SUMS / R;
  Ahead<In> next{k + AHEAD * ld_k, ld_k, d};
  for (int64_t j = 0; j < n; j += K) {
    const In* row[K];
    for (int i = 0; i < K; ++i) row[i] = k + min(j + i, n - 1) * ld_k;
    Vec sum[SUMS];
    for (int i = 0; i < SUMS; ++i) sum[i] = all(0);
    if constexpr (R < 4) {  // line after line, as memory is foreseen
      for (int i = 0; i < K; ++i) {
        for (int64_t c = 0; c < d; c += Step::STEP) {
          const auto key = Step::key(row[i] + c, d - c);
          for (int r = 0; r < R; ++r)
            sum[r * K + i] = Step::add(sum[r * K + i], q + r * ld_q + c, key);
        }
      }
    } else {
      for (int64_t c = 0; c < d; c += Step::STEP) {
        typename Step::Key key[K];
        for (int i = 0; i < K; ++i) key[i] = Step::key(row[i] + c, d - c);
        if (!again)
          for (int i = 0; i < K * Step::STEP / Ahead<In>::LINE; ++i) next.line();
        for (int r = 0; r < R; ++r)
          for (int i = 0; i < K; ++i)
            sum[r * K + i] = Step::add(sum[r * K + i], q + r * ld_q + c, key[i]);
      }
    }
    alignas(64) float found[SUMS];
    for (int i = 0; i < SUMS; i += LANES) store(found + i, across(sum + i));
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < K && j + i < n; ++i) scores[r * ld + j + i] = found[r * K + i];
  }
}

// total[r, c] += sum_j weights[r, j] v[j, c] for R rows, n keys and up to C vectors of columns.
// STRIP keys at a time, so that rows that several runs over the columns read stay near.
template <int R, int C, class In>
void gathered(const float* weights, int64_t ld, const In* v, int64_t ld_v, int64_t n, int64_t dv,
              float* total, int64_t ld_t, bool again) {
  Ahead<In> next{v + AHEAD * ld_v, ld_v, dv};
  for (int64_t begin = 0; begin < n; begin += STRIP) {
    const int64_t end = min(n, begin + STRIP);
    for (int64_t c = 0; c < dv; c += C * LANES) {
      Part on[C];
      for (int i = 0; i < C; ++i) on[i] = first(dv - c - i * LANES);
      Vec sum[R][C];
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < C; ++i) sum[r][i] = get(total + r * ld_t + c + i * LANES, on[i]);
      for (int64_t j = begin; j < end; ++j) {
        for (int i = 0; R == 4 && !again && i < C * LANES / Ahead<In>::LINE; ++i) next.line();
        Vec value[C];
        for (int i = 0; i < C; ++i) value[i] = get(v + j * ld_v + c + i * LANES, on[i]);
        for (int r = 0; r < R; ++r) {
          const Vec weight = all(weights[r * ld + j]);
          for (int i = 0; i < C; ++i) sum[r][i] = fma(weight, value[i], sum[r][i]);
        }
      }
      for (int r = 0; r < R; ++r)
        for (int i = 0; i < C; ++i) set(total + r * ld_t + c + i * LANES, on[i], sum[r][i]);
    }
  }
}

// Calls f(number of rows as a constant, first row) for all m rows, four, two or one at a time.
template <class F>
void by_rows(int64_t m, F f) {
  int64_t r = 0;
  for (; r + 4 <= m; r += 4) f(std::integral_constant<int, 4>(), r);
  if (r + 2 <= m) f(std::integral_constant<int, 2>(), r), r += 2;
  if (r < m) f(std::integral_constant<int, 1>(), r);
}

struct Row {
  Buffer<float> rows;
};

template <class Query>
struct ShortScratch {
  Buffer<Query> query;
  Buffer<float> scores, add, total;
  std::vector<Row> heads;
};

// One stretch [begin, end) of keys for all queries of one group of heads: what they sum up to,
// [m, dv], and behind it for every row the maximum and the sum of weights, [m, 2].
template <class Rows, class In, class Query>
void stretch(const Forward& p, int64_t b, int64_t g, int64_t begin, int64_t end, float* total,
             ShortScratch<Query>& x) {
  const int64_t group = p.h / p.g, m = group * p.t, ld_q = up(p.d, Dot<In, Query>::STEP);
  Query* query = x.query.get(m * ld_q);
  float *scores = x.scores.get(m * KEYS), *add = x.add.get(KEYS);
  x.heads.resize(group);
  std::vector<Rows> heads;
  heads.reserve(group);
  for (int64_t h = 0; h < group; ++h) {
    heads.emplace_back(p, b, g * group + h, 0, p.t, x.heads[h]);
    for (int64_t t = 0; t < p.t; ++t) {
      Query* row = query + (h * p.t + t) * ld_q;
      at::vec::convert(p.q.at<In>(b, g * group + h, t), row, p.d);
      std::fill(row + p.d, row + ld_q, Query(0));
    }
  }
  std::fill_n(total, m * p.dv, 0.0f);
  const bool masked = p.bias || p.keep;
  for (int64_t j = begin; j < end; j += KEYS) {
    const int64_t n = min(KEYS, end - j);
    const In *k = p.k.at<In>(b, g, j), *v = p.v.at<In>(b, g, j);
    const int64_t ld_k = p.k.stride[2], ld_v = p.v.stride[2];
    by_rows(m, [&](auto rows, int64_t r) {
      scored<rows()>(query + r * ld_q, ld_q, k, ld_k, n, p.d, scores + r * KEYS, KEYS, r > 0);
    });
    for (int64_t r = 0; r < m; ++r) {
      const int64_t h = r / p.t, t = r % p.t;
      if (masked)
        added(p.bias, p.keep, b, g * group + h, t, j, n, up(n, LANES), heads[h].tau, add);
      const int64_t kept = p.causal ? std::max<int64_t>(0, min(n, t + 1 - j)) : n;
      float* s = scores + r * KEYS;
      heads[h].weigh(t, s, masked ? add : nullptr, kept, n, s, total + r * p.dv);
    }
    by_rows(m, [&](auto rows, int64_t r) {
      constexpr int columns = std::min<int>(SUMS / rows(), SUMS / 2);
      gathered<rows(), columns>(scores + r * KEYS, KEYS, v, ld_v, n, p.dv, total + r * p.dv, p.dv,
                                r > 0);
    });
  }
  for (int64_t r = 0; r < m; ++r)
    heads[r / p.t].part(r % p.t, total + m * p.dv + 2 * r);
}

// Joins the `count` stretches of a group of heads, each `size` numbers, and writes its output.
template <class Rows, class In>
void joined(const Forward& p, int64_t b, int64_t g, int64_t count, int64_t size, float* parts) {
  const int64_t group = p.h / p.g, m = group * p.t;
  Row scratch;
  for (int64_t r = 0; r < m; ++r) {
    const int64_t h = g * group + r / p.t, t = r % p.t;
    auto tail = [&](int64_t i) { return parts + i * size + m * p.dv + 2 * r; };
    float top = NONE, sum = 0;
    for (int64_t i = 0; i < count; ++i)  // what is no number stays so
      if (!(*tail(i) <= top)) top = *tail(i);
    float* total = parts + r * p.dv;
    for (int64_t i = 0; i < count; ++i) {
      const float weight = top == NONE || *tail(i) == NONE ? 0.0f : std::exp2(*tail(i) - top);
      const float* part = parts + i * size + r * p.dv;
      sum += weight * tail(i)[1];
      for (int64_t c = 0; c < p.dv; ++c) total[c] = weight * part[c] + (i ? total[c] : 0.0f);
    }
    const Vec last = all(Rows(p, b, h, 0, p.t, scratch).finish(t, top, sum));
    In* out = p.out.at<In>(b, h, t);
    for (int64_t c = 0; c < p.dv; c += LANES) {
      const Part on = first(p.dv - c);
      set(out + c, on, get(total + c, on) * last);
    }
  }
}

template <class Rows, class In, class Query>
void short_queries(const Forward& p) {
  const int64_t heads = p.b * p.g, m = p.h / p.g * p.t, size = m * (p.dv + 2);
  const int64_t wanted = up(2 * at::get_num_threads(), heads) / heads;
  const int64_t blocks = up(p.s, KEYS) / KEYS, count = std::max<int64_t>(1, min(wanted, blocks / 4));
  const int64_t keys = up(blocks, count) / count * KEYS;
  // a group whose keys lie in one stretch is done where it was summed
  const std::unique_ptr<float[]> parts(count > 1 ? new float[heads * count * size] : nullptr);
  at::parallel_for(0, heads * count, 1, [&](int64_t begin, int64_t end) {
    with_scratch<ShortScratch<Query>>(false, [&](ShortScratch<Query>& scratch) {
      float* own = count > 1 ? nullptr : scratch.total.get(size);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / count / p.g, g = i / count % p.g, first = i % count * keys;
        float* total = count > 1 ? parts.get() + i * size : own;
        stretch<Rows, In, Query>(p, b, g, min(first, p.s), min(first + keys, p.s), total, scratch);
        if (count == 1) joined<Rows, In>(p, b, g, 1, size, total);
      }
    });
  });
  if (count == 1) return;
  at::parallel_for(0, heads, up(FEW, m + 1) / (m + 1), [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head)
      joined<Rows, In>(p, head / p.g, head % p.g, count, size, parts.get() + head * count * size);
  });
}

}  // namespace attnpass
