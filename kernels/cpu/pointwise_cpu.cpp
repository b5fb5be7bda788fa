// Forward of the pointwise family: out = gain * sum_s keep * h(tau (scale q.k + bias) + offset) v;
// and of softmax, whose rows are rescaled while their maximum grows (1805.02867), by the same tiles.
// A task is one block of query rows of one head; keys and values are packed once per head and
// thread. Each tile of scores is a product, h in place, and a second product.

namespace attnpass {

struct Forward {
  int64_t b, h, g, t, s, d, dv, block_m, block_n, heads, function, causal;
  double scale;
  Array q, k, v, bias, keep, tau, offset, gain, out, lse;
};

// Turns one row of products into weights: p = h(a s + offset + added), 0 where not kept and from
// n up to width.
template <class H, class Mul>
struct Weigh {
  static void run(const float* s, const float* added, int64_t n, int64_t width, float a,
                  float offset, Mul* p) {
    const Vec slope = all(a * H::UNIT), shift = all(offset * H::UNIT), unit = all(H::UNIT);
    int64_t i = 0;
    if (added == nullptr) {
      for (; i < n; i += LANES)
        store(p + i, H::value(fma(load(s + i), slope, shift)));
    } else {
      for (; i < n; i += LANES) {
        const Vec add = load(added + i);
        const Lanes kept = differs(add, all(NONE));
        const Vec x = fma(load(s + i), slope, fma(add, unit, shift));
        store(p + i, chosen(kept, H::value(x)));
      }
    }
    for (i = n; i < width; ++i) p[i] = 0;
  }
};

template <class Mul>
using WeighRow = void (*)(const float*, const float*, int64_t, int64_t, float, float, Mul*);

// The rows of one block under a pointwise h.
template <class Mul>
struct PointwiseRows {
  const Forward& p;
  int64_t b, h, i;
  float tau, a;
  WeighRow<Mul> weigh_row;

  template <class Scratch>
  PointwiseRows(const Forward& p, int64_t b, int64_t h, int64_t i, int64_t, Scratch&)
      : p(p), b(b), h(h), i(i) {
    tau = p.tau ? *(p.tau.at<float>(0, 0, 0) + h * p.tau.stride[3]) : 1.0f;
    a = float(p.scale) * tau;
    weigh_row = of<Weigh, Mul, WeighRow<Mul>>(p.function);
  }

  void weigh(int64_t r, float* s, const float* added, int64_t n, int64_t width, Mul* weights,
             float*) {
    const float offset = p.offset ? *p.offset.at<float>(b, h, i + r) : 0.0f;
    weigh_row(s, added, n, width, a, offset, weights);
  }

  void begin(const Mul*, int64_t, int64_t, float) {}

  float factor(int64_t r) { return finish(r, 0, 1); }

  // Sums of several stretches of keys are added as they are.
  void part(int64_t, float* out) { out[0] = 0, out[1] = 1; }
  float finish(int64_t r, float, float) { return p.gain ? *p.gain.at<float>(b, h, i + r) : 1.0f; }
};

// The rows of one block under softmax: 2^(x - top), x = log2(e) logit. Weights are rescaled only
// where the maximum has grown by more than SLACK, so that they are 2^SLACK at most. Where the lengths
// of queries and keys bound the logits of all rows by BOUND, `top` is that bound, and never grows.
template <class Mul>
struct SoftmaxRows {
  static constexpr float LOG2E = 1.4426950408889634f, SLACK = 8, FAR = 1 << 20, BOUND = 32;
  static constexpr bool EXACT = std::is_same_v<Mul, float>;
  const Forward& p;
  int64_t b, h, i;
  float tau = LOG2E, a;
  float *top, *sums;  // [m], [m, LANES]
  bool bounded = false;

  template <class Scratch>
  SoftmaxRows(const Forward& p, int64_t b, int64_t h, int64_t i, int64_t m, Scratch& x)
      : p(p), b(b), h(h), i(i), a(float(p.scale) * LOG2E) {
    top = x.rows.get(m * (1 + LANES)), sums = top + m;
    std::fill_n(top, m, NONE);
    std::fill_n(sums, m * LANES, 0.0f);
  }

  // `longest` is the length of the longest key, inf where that is not known.
  void begin(const Mul* q, int64_t ld, int64_t m, float longest) {
    for (int64_t r = 0; r < m; ++r) {
      top[r] = longest * a * std::sqrt(squares(q + r * ld, p.d));
      if (!(top[r] <= BOUND)) {
        std::fill_n(top, m, NONE);
        return;
      }
    }
    bounded = true;
  }

  // `total` is what was summed of the row before; null at first.
  void weigh(int64_t r, float* s, const float* added, int64_t n, int64_t width, Mul* weights,
             float* total) {
    if (bounded) return weigh_by<false>(r, s, a, n, width, weights);
    Vec most = all(NONE);
    float slope = added ? 1 : a;
    int64_t j = 0;
    for (; added && j < n; j += LANES) store(s + j, fma(load(s + j), all(a), load(added + j)));
    for (j = 0; j + LANES <= n; j += LANES) most = larger(most, load(s + j));
    if (j < n) most = larger(most, chosen(lanes(first(n - j)), load(s + j), all(NONE)));
    float peak = most_of(most);
    if (!added) peak *= a;
    if (!added && !(std::abs(peak) < FAR)) {
      // what the peak rounds away would count for more than a weight: all are rounded as it is
      for (j = 0; j < n; j += LANES) store(s + j, load(s + j) * all(a));
      slope = 1;
    }
    // the largest value hides what is no number; behind NONE alone nothing else would tell of it
    if (peak == NONE && !nothing(s, n)) peak = NAN;
    if (!(peak <= top[r] + SLACK)) grow(r, peak, total);
    if (top[r] == NONE) {
      for (int64_t j = 0; j < width; ++j) weights[j] = 0;
      return;
    }
    weigh_by<true>(r, s, slope, n, width, weights);
  }

  template <bool Any>
  void weigh_by(int64_t r, const float* s, float slope, int64_t n, int64_t width, Mul* weights) {
    Vec sum = load(sums + r * LANES);
    auto weight = [&](int64_t j) {
      const Vec t = fms(load(s + j), all(slope), all(top[r]));
      if constexpr (Any) return power<EXACT>(t);
      else return exp2<EXACT>(t);
    };
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
      const Vec y = weight(j);
      sum = sum + y;
      store(weights + j, y);
    }
    if (j < n) {
      const Vec y = chosen(lanes(first(n - j)), weight(j));
      sum = sum + y;
      store(weights + j, y);
      j += LANES;
    }
    store(sums + r * LANES, sum);
    for (; j < width; ++j) weights[j] = 0;
  }

  // Whether a row of logits is NONE throughout.
  static bool nothing(const float* s, int64_t n) {
    bool found = false;
    for (int64_t j = 0; j < n && !found; j += LANES)
      found = any(differs(load(s + j), all(NONE)) & lanes(first(n - j)));
    return !found;
  }

  void grow(int64_t r, float peak, float* total) {
    if (std::isnan(top[r])) return;
    const float shrink = top[r] == NONE ? 0.0f : std::exp2(top[r] - peak);
    top[r] = peak;
    store(sums + r * LANES, load(sums + r * LANES) * all(shrink));
    for (int64_t c = 0; total && c < p.dv; ++c) total[c] *= shrink;
  }

  float factor(int64_t r) { return finish(r, top[r], sum(r)); }
  float sum(int64_t r) { return sum_of(load(sums + r * LANES)); }

  // What is needed to join the sums of several stretches of keys.
  void part(int64_t r, float* out) { out[0] = top[r], out[1] = sum(r); }

  // Writes the row's log-sum-exp; a row without a kept key is 0, and its log-sum-exp -inf.
  float finish(int64_t r, float peak, float sum) {
    const bool none = sum == 0;
    if (p.lse) *p.lse.at<float>(b, h, i + r) = none ? NONE : (peak + std::log2(sum)) / LOG2E;
    return none ? 0.0f : 1.0f / sum;
  }
};

// The keys and values of one head as products read them, in blocks of block_n columns.
template <class In, class Mul>
struct Packed {
  Buffer<Mul> keys, values, copy;
  const Mul* v = nullptr;
  int64_t ld_v = 0, wide = 0;
  float longest = 0;  // of the keys, where softmax of plain products asks for it

  void pack(const Forward& p, int64_t b, int64_t g) {
    const bool measured = p.function == SOFTMAX && !p.bias && !p.keep;
    float most = 0, all_of_them = 0;
    wide = up(p.d, PAIR<Mul>);
    Mul* k = keys.get(up(p.s, GRAIN<Mul>) * wide);
    for (int64_t j = 0; j < p.s; j += p.block_n) {
      const int64_t n = min(p.block_n, p.s - j);
      int64_t ld;
      const Mul* x = rows<In, Mul>(p.k.at<In>(b, g, j), p.k.stride[2], n, p.d, copy, &ld);
      turned(x, ld, n, p.d, up(n, GRAIN<Mul>), k + j * wide);
      for (int64_t i = 0; measured && i < n; ++i) {
        const float length = squares(x + i * ld, p.d);
        most = std::max(most, length), all_of_them += length;
      }
    }
    // a maximum hides what is no number, a sum does not
    longest = measured && std::isfinite(all_of_them) ? std::sqrt(most) : INFINITY;
    v = rows<In, Mul>(p.v.at<In>(b, g, 0), p.v.stride[2], p.s, p.dv, copy, &ld_v);
    if constexpr (PAIR<Mul> == 2) {
      Mul* out = values.get(up(p.s, 2) * p.dv);
      paired(v, ld_v, p.s, p.dv, out);
      v = out, ld_v = p.dv;
    }
  }
};

template <class In, class Mul>
struct Scratch {
  Packed<In, Mul> packed;
  Buffer<float> scores, total, add, rows;
  Buffer<Mul> weights, query;
};

constexpr int64_t NEAR = 512;  // keys of a head that stay in the cache until it is its turn

// Brings row i of one head of `x` near; processors do not foresee rows that lie far apart.
template <class In>
void fetch(const Array& x, int64_t b, int64_t h, int64_t i, int64_t d) {
  const char* row = reinterpret_cast<const char*>(x.at<In>(b, h, i));
  for (int64_t c = 0; c < d * int64_t(sizeof(In)); c += 64) later(row + c);
}

// `next` is the head whose rows are brought near meanwhile; none if negative.
template <class Rows, class In, class Mul>
void rows_of(const Forward& p, int64_t b, int64_t h, int64_t i, int64_t next,
             Scratch<In, Mul>& x) {
  const int64_t m = min(p.block_m, p.t - i), widest = min(p.block_n, up(p.s, GRAIN<Mul>));
  Rows rows_now(p, b, h, i, m, x);
  const bool masked = p.bias || p.keep, each_row = per_row(p.bias) || per_row(p.keep);
  int64_t ld_q;
  const Mul* q = rows<In, Mul>(p.q.at<In>(b, h, i), p.q.stride[2], m, p.d, x.query, &ld_q);
  float* scores = x.scores.get(m * widest);
  float* total = x.total.get(m * p.dv);
  float* add = masked ? x.add.get(widest) : nullptr;
  Mul* weights;
  if constexpr (PAIR<Mul> == 2) weights = x.weights.get(m * widest);
  else weights = scores;
  const int64_t stop = p.causal ? min(p.s, i + m) : p.s;
  const int64_t next_b = next / p.h, next_h = next % p.h, next_g = next_h / (p.h / p.g);
  auto ahead = [&](int64_t row) {
    fetch<In>(p.out, b, h, row, p.dv);
    if (next < 0) return;
    fetch<In>(p.q, next_b, next_h, row, p.d);
    if (row >= p.s) return;
    fetch<In>(p.k, next_b, next_g, row, p.d);
    fetch<In>(p.v, next_b, next_g, row, p.dv);
  };
  rows_now.begin(q, ld_q, m, x.packed.longest);
  bool begun = false;
  for (int64_t j = 0; j < stop; j += p.block_n) {
    const int64_t n = min(p.block_n, stop - j);
    const int64_t stored = up(min(p.block_n, p.s - j), GRAIN<Mul>), width = up(n, GRAIN<Mul>);
    if (masked && !each_row) {
      added(p.bias, p.keep, b, h, i, j, n, width, rows_now.tau, add);
      if (std::all_of(add, add + n, [](float y) { return y == NONE; })) continue;
    }
    product<Mul>(m, width, x.packed.wide, q, ld_q, x.packed.keys.get(0) + j * x.packed.wide,
                 stored, scores, width, false);
    for (int64_t r = 0; r < m; ++r) {
      if (j == 0) ahead(i + r);
      if (each_row) added(p.bias, p.keep, b, h, i + r, j, n, width, rows_now.tau, add);
      const int64_t kept = p.causal ? std::max<int64_t>(0, min(n, i + r + 1 - j)) : n;
      rows_now.weigh(r, scores + r * width, add, kept, width, weights + r * width,
                     begun ? total + r * p.dv : nullptr);
    }
    product<Mul>(m, p.dv, up(n, PAIR<Mul>), weights, width, x.packed.v + j * x.packed.ld_v,
                 x.packed.ld_v, total, p.dv, begun);
    begun = true;
  }
  if (!begun) std::fill(total, total + m * p.dv, 0.0f);
  for (int64_t r = 0; r < m; ++r) {
    const Vec gain = all(rows_now.factor(r));
    In* out = p.out.at<In>(b, h, i + r);
    for (int64_t c = 0; c < p.dv; c += LANES) {
      const Part on = first(p.dv - c);
      set(out + c, on, get(total + r * p.dv + c, on) * gain);
    }
  }
}

template <class Rows, class In, class Mul>
void forward_by(const Forward& p) {
  const int64_t blocks = up(p.t, p.block_m) / p.block_m;
  // several heads a task: fewer threads; else threads may share the rows of a head
  const int64_t grain = p.heads > 1 ? p.heads * blocks : 1;
  at::parallel_for(0, p.b * p.h * blocks, grain, [&](int64_t begin, int64_t end) {
    with_scratch<Scratch<In, Mul>>(needs_much(p), [&](Scratch<In, Mul>& scratch) {
      int64_t held = -1;
      for (int64_t task = begin; task < end; ++task) {
        const int64_t head = task / blocks, b = head / p.h, h = head % p.h;
        const int64_t g = h / (p.h / p.g), r = task % blocks;
        // short and long causal rows alternate, so that every stretch of tasks has the same work
        const int64_t block = r % 2 == 0 ? r / 2 : blocks - 1 - r / 2;
        if (held != b * p.g + g) {
          scratch.packed.pack(p, b, g);
          held = b * p.g + g;
        }
        const int64_t next = p.s <= NEAR && task + blocks < end ? head + 1 : -1;
        rows_of<Rows, In, Mul>(p, b, h, block * p.block_m, next, scratch);
      }
    });
    release_products<Mul>();
  });
}

template <class Rows, class In, class Query>
void short_queries(const Forward& p);  // pointwise_short_cpu.cpp

constexpr int64_t FEW = 16;  // queries, against several times as many keys

template <class In, class Mul>
void forward(const Forward& p) {
  if (p.t <= FEW && p.s >= 4 * FEW && p.b * p.g > 0) {
    if (p.function == SOFTMAX) short_queries<SoftmaxRows<float>, In, Mul>(p);
    else short_queries<PointwiseRows<float>, In, Mul>(p);
    return;
  }
  if (p.function == SOFTMAX) forward_by<SoftmaxRows<Mul>, In, Mul>(p);
  else forward_by<PointwiseRows<Mul>, In, Mul>(p);
}

}  // namespace attnpass

extern "C" int pointwise(const attnpass::Forward* problem, size_t size) {
  using namespace attnpass;
  return guarded(problem, size, [](const auto& p) {
    if (p.q.type == FLOAT32) forward<float, float>(p);
    else if (p.q.type == FLOAT16) forward<Half, float>(p);
    else if constexpr (NATIVE_BFLOAT16) forward<BFloat16, BFloat16>(p);
    else forward<BFloat16, float>(p);
  });
}
